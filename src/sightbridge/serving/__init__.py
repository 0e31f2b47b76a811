"""Serving: many requests to one model at the same time, and the HTTP server in front of it."""
