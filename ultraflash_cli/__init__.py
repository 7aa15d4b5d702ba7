"""Upscale video: the engine, the built-in model and the command line."""
