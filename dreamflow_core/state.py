"""Saving and loading nested state as one safetensors file.

State is dicts, lists, numbers, strings and tensors; what is not a tensor travels as JSON in the file's
metadata. Files are written beside their place and renamed, so none is ever half-written.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

_TENSOR = "tensor:"
_FORMAT = "dreamflow-state"


class BadFile(ValueError):
    """A file is not what it should be; the message says which file and why."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, whatever a library raises while it reads `path` becomes a BadFile: one line with that name.

    Parsers meet foreign bytes with every kind of exception. A GPU that is full is no fault of the file.
    """
    try:
        yield
    except (BadFile, torch.OutOfMemoryError):
        raise
    except FileNotFoundError as error:
        raise BadFile(f"there is no file {error.filename or path}") from error
    except Exception as error:
        reason = shorten(str(error), 300) or type(error).__name__
        raise BadFile(f"{path} cannot be loaded: {reason}") from error


def make_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose ("noise", "cameras"...), independent of the others."""
    # A CPU generator takes in 32 bits of its seed and ignores the others.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{purpose}".encode()))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or none of it, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state`. Dict keys are strings or ints."""
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    write_bytes(path, save(tensors, {"format": _FORMAT, "tree": json.dumps(tree)}))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU.

    Raises:
        BadFile: the file is missing, broken, or not one of ours.
    """
    with open_tensors(path, _FORMAT, "a saved state of DreamFlow") as (file, metadata):
        return _unpack(json.loads(metadata["tree"]), file)


def is_state(path: Path) -> bool:
    """Whether the file is one that `save_state` wrote."""
    try:
        with open_tensors(path, _FORMAT, "a saved state of DreamFlow"):
            return True
    except BadFile:
        return False


@contextmanager
def open_tensors(path: Path, format_: str, kind: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open safetensors file and its metadata, whose "format" has to be `format_`.

    Raises:
        BadFile: the file is missing, broken, or of another format; `kind` says what it should be.
    """
    if not path.is_file():
        raise BadFile(f"there is no file {path}; it should be {kind}")
    with reading(path), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != format_:
            raise BadFile(f"{path} is not {kind}")
        yield file, metadata


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A clone, so that tensors sharing memory become tensors of their own.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return _TENSOR + name
    if isinstance(value, dict):
        return {f"{type(k).__name__}:{k}": _pack(v, tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(v, tensors) for v in value]
    return value


def _unpack(value: Any, file: Any) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return file.get_tensor(value.removeprefix(_TENSOR))
    if isinstance(value, dict):
        return {_key(k): _unpack(v, file) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack(v, file) for v in value]
    return value


def _key(packed: str) -> str | int:
    kind, _, key = packed.partition(":")
    return int(key) if kind == "int" else key
