"""Weights as data: listed, installed and verified."""
