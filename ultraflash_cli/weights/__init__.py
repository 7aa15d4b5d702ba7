"""Weights as data: what there is if it is, and that it is what it should be."""
