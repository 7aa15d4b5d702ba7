"""Training: data, degradation, one loop, and a recipe a file."""
