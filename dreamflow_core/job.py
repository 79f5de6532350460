"""What a run is, in JSON values: by them a saved state of the same run is told from one of another.

A file stands for its contents. Moved or renamed it is the same one; replaced under its name it is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .state import reading

_BLOCK, _BLOCKS = 1 << 14, 256
_OF_A_MODEL = {".safetensors", ".json", ".txt", ".model"}
"""What a model's folder holds of it: weights, settings and tokenizers."""


def of_file(path: Path, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A file or a model's folder in a job.

    Args:
        name: what the user called it, if not by its path.
        more: what else has to be equal.

    Raises:
        BadFile: it cannot be read.
    """
    return {"file": name or str(path), "digest": digest(path), **more}


def digest(path: Path) -> str:
    """A fast digest of what a file, or the model in a folder, contains.

    It takes in a file of up to 4 MiB whole; of a larger one its size, 256 blocks of 16 KiB evenly spread from its start
    to its end, and of safetensors the header: all names, shapes and types. So it tells models that were trained,
    merged or converted differently; not those that differ only between the blocks, as after an edit of a few weights.
    In a folder, files have to lie at the same places.

    Raises:
        BadFile: it cannot be read.
    """
    with reading(path):
        if not path.is_dir():
            return _of_contents(path)
        files = sorted(file for file in path.rglob("*") if file.suffix in _OF_A_MODEL and file.is_file())
        lines = (f"{file.relative_to(path).as_posix()} {_of_contents(file)}\n" for file in files)
        return _hash(line.encode() for line in lines)


def _of_contents(path: Path) -> str:
    size = path.stat().st_size

    def blocks() -> Iterator[bytes]:
        yield str(size).encode()
        with path.open("rb") as file:
            if size <= _BLOCK * _BLOCKS:
                yield file.read()
                return
            if path.suffix == ".safetensors":
                yield file.read(min(int.from_bytes(file.read(8), "little"), size))
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                yield file.read(_BLOCK)

    return _hash(blocks())


def _hash(parts: Iterator[bytes]) -> str:
    hash_ = hashlib.blake2b(digest_size=16)
    for part in parts:
        hash_.update(part)
    return hash_.hexdigest()


def differences(saved: Any, job: Any, name: str = "") -> Iterator[str]:
    """In what a job differs from a saved one: names, and files whose contents are others.

    A setting that the saved job lacks came later: where it is None, 0 or empty it changes nothing. Of files, earlier
    versions saved the name alone, or nothing.
    """
    if _is_file(job) and not _is_file(saved):
        if saved != job["file"]:
            yield name
    elif _is_file(job):
        if saved["digest"] != job["digest"]:
            yield f"the contents of {job['file']}"
        more = {key: value for key, value in job.items() if key not in ("file", "digest")}
        yield from differences(saved, more, name)
    elif isinstance(job, dict) and isinstance(saved, dict):
        for key, value in job.items():
            inner = f"{name}.{key}" if name else key
            if key in saved:
                yield from differences(saved[key], value, inner)
            elif value and not _is_file(value):
                yield inner
    elif isinstance(job, list) and isinstance(saved, list) and len(job) == len(saved):
        for old, new in zip(saved, job):
            yield from differences(old, new, name)
    elif saved != job:
        yield name


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.get("digest") is not None
