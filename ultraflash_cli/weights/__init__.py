"""Weights as data: what there is, where it is, and that it is what it should be."""
