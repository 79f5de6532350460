"""Prompts of any length through CLIP's text encoders, in chunks as ComfyUI has them.

A text that an encoder cannot take at once (75 tokens between a start and an end for every CLIP) is cut into
chunks that are encoded one by one; their hidden states stand in a row, and the pooled vector is the first chunk's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def chunked(tokenizer: Any, encoder: Any, text: str) -> Tensor:
    """(chunks, tokens of the encoder) indices; an empty text is one chunk."""
    words = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    room = min(tokenizer.model_max_length, encoder.config.max_position_embeddings) - 2
    rows = [words[start : start + room] for start in range(0, max(len(words), 1), room)]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return torch.tensor([[start, *row, end, *[pad] * (room - len(row))] for row in rows])


@torch.no_grad()
def encode_text(encoders: Sequence[tuple[Any, Any]], text: str, *, penultimate: bool) -> tuple[Tensor, Tensor | None]:
    """Hidden states (1, chunks * tokens, width) and the pooled vector (1, width) of a text.

    Args:
        encoders: tokenizers with their transformers models; widths add up.
        text: of any length.
        penultimate: take the last layer but one, unnormalised, as SDXL does.

    Returns:
        No pooled vector (None) if no encoder has a projection; the last one's if several have.
    """
    hidden, pooled = [], None
    for tokenizer, encoder in encoders:
        out = encoder(chunked(tokenizer, encoder, text).to(encoder.device), output_hidden_states=penultimate)
        states = out.hidden_states[-2] if penultimate else out.last_hidden_state
        hidden.append(states.flatten(0, 1)[None])
        if hasattr(out, "text_embeds"):
            pooled = out.text_embeds[:1]
    return torch.cat(hidden, dim=-1), pooled


def batched(hidden: Sequence[Tensor]) -> Tensor:
    """Hidden states (1, tokens, width) of texts of any lengths as one batch.

    Shorter ones are repeated until all are of one length, which changes nothing: cross-attention does not know
    where a token stands, so one that is there n times gets n parts of what it would get once.
    """
    tokens = math.lcm(*(states.shape[1] for states in hidden))
    return torch.cat([states.repeat(1, tokens // states.shape[1], 1) for states in hidden])
