"""Mesh files of other programs: what they look like here, and in three.js.

    python benchmarks/samples.py FOLDER ...

Every .glb, .gltf, .obj and .ply file in the folders is read and drawn from two sides, base colours without light, and
drawn by three.js likewise (tests/threejs.py). Prints a Markdown table: of a file that is refused why, of others the
peak signal-to-noise ratio of the worse view in dB, and whether the pictures are alike (30 dB and more). `--pictures`
keeps both pictures and their difference.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from other_tools import Missing
from threejs import ThreeJs, psnr, unlit_pictures

from dreamflow_core.cameras import Cameras
from dreamflow_core.mesh.files import READ_SUFFIXES, load_mesh
from dreamflow_core.mesh.mesh import Mesh
from dreamflow_core.pictures import contact_sheet, save_picture
from dreamflow_core.state import BadFile

VIEWS = Cameras(*torch.tensor([[0.0, 40.0], [0.0, 25.0], [2.5, 2.5], [50.0, 50.0]]))
"""The front, and three quarters from above."""
ALIKE = 30.0
"""dB from which on two pictures count as alike."""


@dataclass(frozen=True)
class Result:
    """What became of a file: a word for the totals, and what there is to say."""

    outcome: str
    text: str


class Reader:
    """Reads and draws files in a process of its own, which is replaced when it dies or takes too long.

    Args:
        size: of the pictures.
        seconds: that a file may take.
    """

    def __init__(self, size: int, seconds: float):
        self._size, self._seconds = size, seconds
        self._process: multiprocessing.process.BaseProcess | None = None

    def read(self, path: Path) -> tuple[Mesh, Tensor] | Result:
        """A file's mesh and its pictures (B, 3, size, size)."""
        if self._process is None:
            self._start()
        self._pipe.send(path)
        try:
            if self._pipe.poll(self._seconds):
                answer = self._pipe.recv()
                return answer if isinstance(answer, Result) else (answer[0], torch.from_numpy(answer[1]))
            result = Result("no answer", f"it takes longer than {self._seconds:g} s")
        except EOFError:
            result = Result("no answer", "the process that reads it dies")
        self.close()
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._size), daemon=True)
        self._process.start()
        # Ours alone is open then, so that the end of the process ends the pipe.
        theirs.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def _serve(pipe: Connection, size: int) -> None:
    logging.disable()
    while True:
        path = pipe.recv()
        try:
            mesh = load_mesh(path)
            pipe.send((mesh, unlit_pictures(mesh, VIEWS, size).numpy()))
        except BadFile as error:
            pipe.send(Result("refused", str(error).replace(f"{path}: ", "").replace(f"{path} ", "")))
        # This is what the benchmark looks for.
        except Exception as error:
            pipe.send(Result("no answer", f"{type(error).__name__}: {error}"))


class Drawer:
    """three.js, started anew after a file that it failed at."""

    def __init__(self, size: int):
        self._size = size
        self._three: ThreeJs | None = None

    def pictures(self, path: Path, mesh: Mesh) -> Tensor | Result:
        """What three.js shows of a file that was read as this mesh, (B, 3, size, size)."""
        try:
            if self._three is None:
                self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                self._three = ThreeJs(Path(self._profile.name))
            return self._three.pictures(path, mesh, VIEWS, self._size)
        except (RuntimeError, TimeoutError) as error:
            self.close()
            return Result("only here", f"three.js: {str(error).splitlines()[0]}")

    def close(self) -> None:
        if self._three is not None:
            self._three.close()
            self._profile.cleanup()
        self._three = None


def compare(path: Path, reader: Reader, drawer: Drawer, pictures: Path | None) -> Result:
    """Read and draw a file both ways; the pictures go into a folder if there is one."""
    ours = reader.read(path)
    if isinstance(ours, Result):
        return ours
    mesh, here = ours
    there = drawer.pictures(path, mesh)
    if isinstance(there, Result):
        return there
    if pictures:
        sheet = contact_sheet(torch.cat([here, there, (here - there).abs()]), columns=len(VIEWS))
        save_picture(pictures / f"{'-'.join(path.parts[-3:])}.png", sheet)
    worst = min(psnr(one, other) for one, other in zip(here, there))
    return Result("alike" if worst >= ALIKE else "different", f"{worst:.1f} dB")


def files(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """The mesh files in folders, each with its name from there on, in a fixed order."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in READ_SUFFIXES and path.is_file():
                yield str(path.relative_to(folder.parent)), path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--size", type=int, default=256, help="of the pictures")
    parser.add_argument("--limit", type=int, help="at most so many files")
    parser.add_argument("--seconds", type=float, default=120, help="that a file may take")
    parser.add_argument("--only", default="", help="files whose name ends so")
    parser.add_argument("--pictures", type=Path, help="folder to put pictures into")
    options = parser.parse_args()
    reader, drawer = Reader(options.size, options.seconds), Drawer(options.size)
    totals = Counter[str]()
    print("| file | outcome | worse view, or why |\n| --- | --- | --- |")
    try:
        chosen = [(name, path) for name, path in files(options.folders) if name.endswith(options.only)]
        for name, path in chosen[: options.limit]:
            result = compare(path, reader, drawer, options.pictures)
            totals[result.outcome] += 1
            print(f"| {name} | {result.outcome} | {result.text} |", flush=True)
    except (Missing, pytest.skip.Exception) as error:
        sys.exit(str(error))
    finally:
        reader.close()
        drawer.close()
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(totals.items())))


if __name__ == "__main__":
    main()
