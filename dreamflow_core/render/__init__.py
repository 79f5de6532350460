"""Rendering: volume rendering and rasterisation, each with a plain torch reference and faster backends."""
