"""Views with prompts of their own, denoised in one batch where nothing but their prompts tells them apart.

ComfyUI gives every latent of a batch the same conditioning. A conditioning whose tensors have a row for each latent
passes through its samplers just so, which saves a call of the network for every further prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from comfy.conds import is_equal

from .conditioning import VIEW

Conds = dict[str, list[dict[str, Any]]]
"""What a guider holds: processed entries by "positive" and "negative"."""

_OF_THE_PROMPT = {"model_conds", "cross_attn", "pooled_output", "uuid", VIEW}
"""Options that may differ: the tag, a name, and what `model_conds` was made from."""


def joined(groups: Sequence[tuple[Conds, int]]) -> Conds | None:
    """One conditioning for a batch in which each of `groups` holds for so many rows, in their order.

    None where the groups differ in more than their prompts (areas, masks, hooks, ControlNets, timesteps...), or
    where their prompts differ in form.
    """
    result: Conds = {name: [] for name in groups[0][0]}
    for name, entries in result.items():
        by_group = [conds[name] for conds, _ in groups]
        if len(set(map(len, by_group))) > 1:
            return None
        for same_place in zip(*by_group):
            entry = _join(same_place, [rows for _, rows in groups])
            if entry is None:
                return None
            entries.append(entry)
    return result


def _join(entries: Sequence[dict[str, Any]], rows: Sequence[int]) -> dict[str, Any] | None:
    """One entry for all rows, of which each of `entries` holds for so many."""
    first, *others = ({k: v for k, v in entry.items() if k not in _OF_THE_PROMPT} for entry in entries)
    if not all(is_equal(first, other) for other in others):
        return None
    prompts = [entry["model_conds"] for entry in entries]
    if any(prompt.keys() != prompts[0].keys() for prompt in prompts):
        return None
    model_conds = {}
    for name in prompts[0]:
        parts = [prompt[name] for prompt, count in zip(prompts, rows) for _ in range(count)]
        if any(part.size()[0] != 1 or not parts[0].can_concat(part) for part in parts):
            return None
        model_conds[name] = type(parts[0])(parts[0].concat(parts[1:]))
    # A name of its own: patches may keep things by it.
    return {**entries[0], "model_conds": model_conds, "uuid": uuid4()}
