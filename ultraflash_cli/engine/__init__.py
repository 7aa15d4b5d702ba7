"""The cascade and its stages: tensors in, tensors out; no files, no prints."""
