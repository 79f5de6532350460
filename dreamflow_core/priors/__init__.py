"""Models that can be priors headless: the bundled demo model, and local diffusers checkpoints."""
