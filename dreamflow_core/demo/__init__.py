"""The demo domain: coloured shapes seen from all sides, and the tiny diffusion model of them.

- `vocabulary`: the words a demo prompt may use, and how a prompt becomes a `Description`.
- `shapes`, `truth`: the shapes as signed distance functions and the renderer of the truth.
- `model`: the denoiser and its loading; `dataset`, `train`: how it was made.
- `judge`: the classifier that grades samples, trained on views the model never saw.
"""
