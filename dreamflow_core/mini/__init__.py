"""A small Stable Diffusion on the demo domain: latents with a VAE, cross-attention, timesteps, in standard files."""
