"""The page of ``sightbridge serve``: a chat about pictures, two models side by side, drawing, scores."""
