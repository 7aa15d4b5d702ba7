"""Layers shared by several stages."""
