"""sightbridge: give any language model sight by training only the bridge."""

__version__ = "0.1.0"
