"""The main job, end to end on embedded data: train a tiny bridge between frozen parents and show what it learned."""
