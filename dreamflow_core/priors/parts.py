"""Networks of a diffusers folder, read from local files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..state import BadFile, reading

# What loggers say that is of no concern here: image processors serve the safety checker, which is left out; and a
# list of nothing.
OF_NO_CONCERN = {
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    "diffusers.models.modeling_utils": "should be kept in float32: []",
}


def load_part(folder: Path, name: str, kind: tuple[str, str], dtype: torch.dtype) -> Any:
    """A network of a diffusers folder, whose weights may be of a precision, and in as many files, as they like."""
    library, class_name = kind
    if library not in ("diffusers", "transformers"):
        raise BadFile(f"{folder / name} is a {class_name} of {library}, which is not read")
    part, info = getattr(import_module(library), class_name).from_pretrained(
        str(folder),
        subfolder=name,
        variant=_variant(folder / name),
        use_safetensors=True,
        local_files_only=True,
        dtype=dtype,
        output_loading_info=True,
    )
    strangers = [key for key in info["unexpected_keys"] if not key.endswith(("position_ids", "logit_scale"))]
    for what, keys in (("has tensors that it does not know", strangers), ("lacks weights", info["missing_keys"])):
        if keys:
            raise BadFile(f"{folder / name} {what}: {', '.join(sorted(keys)[:3])}")
    return part


def _variant(folder: Path) -> str | None:
    """What the weights of a network's folder are called besides, if there are none without: fp16, bf16..."""
    pattern = re.compile(r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
    variants = {match[1] for file in folder.glob("*.safetensors") if (match := pattern.fullmatch(file.name))}
    return None if None in variants or not variants else min(variants, key=lambda name: (name != "fp16", name))


@contextmanager
def reading_weights(path: Path) -> Iterator[None]:
    """`state.reading` for what diffusers and transformers raise."""
    with reading(path):
        try:
            yield
        except NotImplementedError as error:
            # What torch raises where a weight was in no file: diffusers leaves such weights without data.
            raise BadFile(f"{path} is incomplete: it lacks weights of its model") from error
