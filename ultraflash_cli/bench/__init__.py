"""How fast a model runs on this device, where the time goes, and how much memory and arithmetic it takes."""
