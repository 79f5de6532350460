"""DreamFlow's core: the approximate probability flow ODE, its scenes and its priors.

Nothing in here imports ComfyUI, so all of it runs headless.
"""
