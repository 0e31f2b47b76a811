"""The web page (extra ``[web]``): chat about pictures that can be drawn on, two models side by side, scores."""
