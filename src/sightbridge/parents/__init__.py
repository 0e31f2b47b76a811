"""The tiny unimodal parents behind ``sightbridge quickstart``, and how they are made.

``vision`` was trained on pictures with class labels, ``decoder`` and ``encoder_decoder`` on text alone; none of them
has seen the other modality. Each folder is an ordinary Hugging Face folder.
"""
