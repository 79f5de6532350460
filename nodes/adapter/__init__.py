"""MODEL, CONDITIONING, VAE, CONTROL_NET and MESH of ComfyUI, as what `dreamflow_core` knows."""
