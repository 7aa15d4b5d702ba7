"""Weights as data: what there is, where it lies, and that it is what it should be."""
