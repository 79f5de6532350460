"""Prompts of the small Stable Diffusion: CLIP's own tokenizer with a vocabulary of the demo domain's words.

Bytes are tokens too, as CLIP has them, so that any text can be encoded; the model was trained on whole words only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import VIEW_WORDING
from ..demo.vocabulary import SLOTS, Description
from .models import LENGTH

START, END = "<|startoftext|>", "<|endoftext|>"
VIEW_FIRST, OTHER_WORD = 0.15, 0.1
"""How often a view comes in front of everything else, and a word gives way to one that means the same."""
_EITHER = {
    "front-quarter": "front three-quarter view",
    "side": "side view",
    "back-quarter": "rear three-quarter view",
}
_OTHERS = ("a", "and", "on", "background", "object", "plain", "seen", "from", ",", "-")
_SAME = {"gray": "grey", "checkered": "checked", "spotted": "dotted", "a": "the", "overhead": "above"}
_LIKEWISE = re.compile(r"\b(" + "|".join(_SAME) + r")\b")


def _words() -> list[str]:
    """Every word of the domain, as the tokenizer splits texts: at hyphens too."""
    texts = [value for values in SLOTS.values() for value in values if value != "plain"]
    texts += [*VIEW_WORDING.values(), *_EITHER.values(), *_SAME.values(), *_OTHERS]
    return sorted({word for text in texts for word in text.replace("-", " - ").split()})


WORDS = _words()


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and the settings that CLIP's tokenizers of transformers and ComfyUI read."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(
        [" ".join(WORDS)],
        # Merging goes on until every word is one token.
        trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def descriptions(words: Tensor) -> list[Description]:
    """What rows of indices (B, slots) say, as `Description.indices` counts them."""
    return [
        Description(*(None if i == 0 else values[i - 1] for i, values in zip(row, SLOTS.values())))
        for row in words.tolist()
    ]


def phrase(what: Description, generator: torch.Generator) -> str:
    """A prompt for a description, in one of the ways people would say it; an open one is the empty prompt.

    A shape that is named without a pattern is plain: where the pattern is open, the shape is too.
    """
    if what == Description():
        return ""
    chance, place, how, other = torch.rand(4, generator=generator).tolist()
    colours = " and ".join(c for c in (what.colour, what.second) if c)
    pattern = None if what.pattern == "plain" and what.shape else what.pattern
    shape = what.shape if what.pattern and what.shape else "object"
    parts = [f"a {' '.join(w for w in (colours, pattern, shape) if w)}"]
    if what.background:
        parts.append(f"on a {what.background} background")
    if what.view:
        wording = {**VIEW_WORDING, **_EITHER}[what.view]
        seen = {"overhead": "seen from above", "below": "seen from below"}.get(what.view, f"seen from the {what.view}")
        at = 0 if chance < VIEW_FIRST else 1 if place < 0.5 else len(parts)
        parts.insert(at, wording if how < 0.7 else seen)
    text = ", ".join(parts)
    return _LIKEWISE.sub(lambda m: _SAME[m[0]], text) if other < OTHER_WORD else text


def phrases(words: Tensor, generator: torch.Generator) -> list[str]:
    return [phrase(what, generator) for what in descriptions(words)]


def tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(B, 77) indices, each text with its start and end."""
    return tokenizer(list(texts), padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
