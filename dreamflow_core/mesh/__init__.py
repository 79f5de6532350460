"""Triangle meshes: from a density field to a textured file."""
