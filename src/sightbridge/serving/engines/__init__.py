"""What answers questions: our own engine with its running batch, or a vLLM server behind the same interface."""
