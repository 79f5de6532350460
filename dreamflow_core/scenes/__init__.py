"""What is optimised. `scene.py` says what a scene is; every other file is one."""
