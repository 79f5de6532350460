"""What every command that optimises shares: progress, Ctrl-C, saved states, and a record of the run."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from ..apfo import Checkpoint, Progress
from ..preparing import listening
from ..state import BadFile, is_state, reading, write_bytes

R = TypeVar("R")

_RECORD = "run.json"
_STATE = "-state.safetensors"
LINE_EVERY = 30.0
"""Seconds between two lines of progress where standard error is no terminal."""


class Run:
    """Runs stages in a folder, and keeps the time they take.

    Args:
        folder: where the record goes.
        job: what is run, JSON values.
        stages: names of those that it optimises.
        states: folder of the saved states.
        resume: continue from the saved states of its stages; they are removed otherwise.
        save_every: seconds between saves.

    Raises:
        ValueError: the folder cannot be written to, or a file that is no saved state has the name of one.
    """

    def __init__(
        self,
        folder: Path,
        job: dict[str, Any],
        stages: Iterable[str],
        *,
        states: Path,
        resume: bool,
        save_every: float,
    ):
        check_folder(folder)
        self.folder, self.job, self.states, self.resume, self.save_every = folder, job, states, resume, save_every
        self.seconds: dict[str, dict[str, float]] = {}
        if resume:
            # Those of stages that are finished; the others take over theirs from their saved states.
            self.seconds = _recorded_seconds(folder / _RECORD)
        else:
            for stage in stages:
                _remove_state(states / (stage + _STATE))

    def optimise(self, name: str, function: Callable[..., R], **job: Any) -> R:
        """Call a function that takes `on_progress`, `cancelled` and `checkpoint`.

        Args:
            name: of the stage.
            job: what the stage is; a saved state of another is refused.
        """
        checkpoint = Checkpoint(self.states / (name + _STATE), job, self.save_every, self.resume)
        with _stop_on_interrupt() as stopped, _Reporter(name) as reporter, preparations(name):
            result = function(on_progress=reporter.update, cancelled=stopped, checkpoint=checkpoint)
        # A stage that was finished before it was resumed takes no time now.
        self.seconds[name] = reporter.seconds or self.seconds.get(name, {})
        return result

    def timed(self, name: str, function: Callable[[], R]) -> R:
        """Call a function that just takes its time; times under one name add up."""
        start = time.perf_counter()
        with preparations(name):
            result = function()
        before = self.seconds.get(name, {}).get("all", 0.0)
        self.seconds[name] = {"all": before + time.perf_counter() - start}
        return result

    def write_record(self) -> None:
        """run.json: what was run, with what, and what it took; enough to run it again."""
        versions = {"python": platform.python_version(), **{name: _version(name) for name in ("dreamflow", "torch")}}
        costs = {"seconds": self.seconds, "peak_memory_mib": peak_memory(), "versions": versions}
        data = json.dumps({**self.job, **costs}, indent=2, default=lambda tensor: tensor.tolist())
        write_bytes(self.folder / _RECORD, data.encode())


def _remove_state(path: Path) -> None:
    """Remove what an earlier run saved."""
    if path.exists():
        if not is_state(path):
            raise BadFile(f"{path} is not a saved state of DreamFlow, whose name it has: move it away")
        path.unlink()


def _recorded_seconds(path: Path) -> dict[str, dict[str, float]]:
    if not path.exists():
        return {}
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("seconds"), dict):
        raise BadFile(f"{path} is not the record of a run: move it away")
    return record["seconds"]


def check_folder(folder: Path) -> None:
    """Raise ValueError unless files can be written to `folder`, without making it yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {folder}: no permission")


def peak_memory() -> dict[str, float]:
    """The most memory this process has had, in MiB: the computer's, and the GPU's if there is one."""
    peak = {}
    try:
        import resource  # not on Windows

        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        peak["cpu"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    except ImportError:
        pass
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return peak


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C asks the loop to stop after its iteration; a second one ends the program."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def preparations(name: str) -> Iterator[None]:
    """Inside, what is tracked shows on standard error: bars on a terminal, elsewhere a line every `LINE_EVERY`."""
    bars: dict[str, tqdm] = {}
    line = time.monotonic()

    def show(what: str, share: float) -> None:
        nonlocal line
        if what not in bars:
            bar_format = f"{name}, {what}: {{percentage:3.0f}}%|{{bar}}| {{elapsed}}"
            bars[what] = tqdm(total=100, bar_format=bar_format, file=sys.stderr, leave=False, disable=None)
        bar = bars[what]
        bar.update(100 * share - bar.n)
        if bar.disable and time.monotonic() - line >= LINE_EVERY:
            line = time.monotonic()
            print(f"{name}: {what}, {share:.0%}", file=sys.stderr, flush=True)
        if share == 1:
            bars.pop(what).close()

    try:
        with listening(show):
            yield
    finally:
        for bar in bars.values():
            bar.close()


class _Reporter:
    """Iterations, level and time left on standard error.

    A bar on a terminal; elsewhere a line every `LINE_EVERY` seconds, and one at the end.
    """

    def __init__(self, name: str) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(desc=name, unit="it", file=sys.stderr, leave=False, disable=None)
        self._name, self._start = name, time.monotonic()
        self._line: tuple[float, int] | None = None

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Progress) -> None:
        self.seconds = progress.seconds
        place = f"level {progress.level}/{progress.levels}, sigma {progress.sigma:.3g}"
        if self._bar.disable:
            self._write_line(progress, place)
            return
        if self._bar.total is None:
            # A resumed run starts part of the way through.
            self._bar.reset(total=progress.steps)
            self._bar.initial = self._bar.last_print_n = progress.step - 1
            self._bar.n = progress.step - 1
        self._bar.set_postfix_str(place, refresh=False)
        self._bar.update()

    def _write_line(self, progress: Progress, place: str) -> None:
        now = time.monotonic()
        then, step = self._line = self._line or (now, progress.step)
        if progress.step == progress.steps:
            times = f"done in {tqdm.format_interval(now - self._start)}"
        elif now - then >= LINE_EVERY:
            self._line = now, progress.step
            pace = (now - then) / (progress.step - step)
            times = f"{tqdm.format_interval(pace * (progress.steps - progress.step))} left"
        else:
            return
        line = f"{self._name}: step {progress.step} of {progress.steps}, {place}, {times}"
        print(line, file=sys.stderr, flush=True)
