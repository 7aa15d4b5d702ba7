"""The stages of the cascade, one file each."""
