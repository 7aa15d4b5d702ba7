"""Runners of golden vector sets, one module for each part of the engine."""
