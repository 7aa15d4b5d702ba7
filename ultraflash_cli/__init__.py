"""Upscale and generate video; see ``ultraflash_cli.api`` for use from Python."""

from ultraflash_cli.api import FrameStream, generate, open_stream, upscale

__all__ = ["FrameStream", "generate", "open_stream", "upscale"]
