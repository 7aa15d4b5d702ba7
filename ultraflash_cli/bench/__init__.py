"""Benchmarks of a model on this device: speed, time per stage, memory and
arithmetic."""
