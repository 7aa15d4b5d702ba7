"""Frames in, frames out: probing, decoding, cuts, encoding, pass-through and safe output files."""
