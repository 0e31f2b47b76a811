"""Configuration files for ``accelerate launch``; see docs/distributed.md."""
