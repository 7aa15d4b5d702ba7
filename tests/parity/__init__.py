"""Runners of golden vector sets, one module per part of the engine."""
