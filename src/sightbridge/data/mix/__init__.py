"""Instruction mixtures: many raw annotation files to one file of mBLIP's rows (``sightbridge data mix``)."""
