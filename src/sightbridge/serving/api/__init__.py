"""The HTTP API: what may be asked, by whom and how much of it, and how answers and errors are written."""
