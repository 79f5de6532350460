"""The `dreamflow` command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from torch import Tensor
from tqdm import tqdm

from .apfo import Cancelled, Checkpoint, NotFinite, Progress
from .guidance import METHODS, PHI_LEVELS, PhiSettings
from .pictures import load_picture, save_picture
from .pipeline import SPACINGS, ImageSettings, ScheduleSettings, images
from .priors.load import DTYPES, HeadlessPrior, PriorSettings, load_prior
from .state import write_bytes

S = TypeVar("S")

PROG = "dreamflow"
BAD_INPUT, INTERRUPTED = 2, 130
"""Exit statuses."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Bad input is one line on standard error and status 2."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options.command(options)
    except (ValueError, OSError, NotFinite, ImportError) as error:
        return _complain(str(error), BAD_INPUT)
    except Cancelled as stopped:
        return _complain(f"{stopped}; the same command with --resume continues", INTERRUPTED)
    return 0


def _complain(message: str, status: int) -> int:
    print(f"{PROG}: {' '.join(message.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message} (see {self.prog} --help)", BAD_INPUT))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROG, description="DreamFlow: images and 3D by the approximate probability flow ODE.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    image = commands.add_parser(
        "image",
        help="text to image, or image to image",
        description=_image.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    image.set_defaults(command=_image)
    _add_image_options(image)
    return parser


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("positive", metavar="PROMPT", help="what to make")
    add("--out", type=Path, required=True, help="folder to write to")
    add("--size", metavar="WxH", help="in pixels; by default the model's own, or that of --init")
    add("--init", type=Path, metavar="PICTURE", help="start from this picture instead of noise; lower --start with it")
    add("--resume", action="store_true", help="continue a run that was stopped")

    add("--save-every", type=float, default=Checkpoint.every, metavar="SECONDS", help="between saved states")

    model = PriorSettings(model="demo", positive="")
    add("--model", default=model.model, help="demo, a diffusers folder or a .safetensors checkpoint")
    add("--negative", default=model.negative, metavar="PROMPT", help="what to keep away from")
    add("--cfg", type=float, default=model.cfg, help="guidance scale; 1.5 for the demo and 7.5 for others if left out")
    add("--lora", dest="loras", action="append", default=[], metavar="FILE[:WEIGHT]", help="may be repeated")
    add("--dtype", choices=list(DTYPES), default=model.dtype, help="of a diffusers model's weights")
    add("--config", metavar="FOLDER", help="diffusers folder to configure a single-file checkpoint from")

    image = ImageSettings()
    add("--count", type=int, default=image.count, help="how many pictures")
    add("--method", choices=list(METHODS), default=image.method)
    add("--learning-rate", type=float, default=image.learning_rate, help="Adam's, for vsd and sds")
    add("--start-noise", type=float, default=image.start_noise, help="deviation of the latents it starts from")
    add("--seed", type=int, default=image.seed)

    schedule = ScheduleSettings()
    add("--start", type=float, default=schedule.start, help="timestep to start at, as a fraction of the model's range")
    add("--end", type=float, default=schedule.end, help="timestep to end at")
    add("--levels", type=int, default=schedule.levels, help="noise levels")
    add("--iterations", type=int, default=schedule.iterations, help="iterations per level")
    add("--spacing", choices=SPACINGS, default=schedule.spacing, help="of the levels")

    phi = image.phi
    add("--phi-rank", type=int, default=phi.rank, help="rank of the scene denoiser's LoRA")
    add("--phi-learning-rate", type=float, default=phi.learning_rate)
    add("--phi-level", choices=PHI_LEVELS, default=phi.level, help="noise level at which the scene denoiser learns")


def _image(options: argparse.Namespace) -> None:
    """Make pictures by the flow and write them as PNG files."""
    model = _settings(PriorSettings, options)
    settings = _settings(
        ImageSettings,
        options,
        schedule=_settings(ScheduleSettings, options),
        phi=PhiSettings(options.phi_rank, options.phi_learning_rate, options.phi_level),
    )
    init = None if options.init is None else load_picture(options.init)
    prior = load_prior(model)
    size = _size(options, prior, init)
    _check_folder(options.out)
    job = {"model": asdict(model), "size": list(size), "settings": asdict(settings), "init": str(options.init)}
    with _stop_on_interrupt() as stopped, _ProgressBar() as bar:
        made = images(
            prior,
            settings,
            size,
            init=init,
            on_progress=bar.update,
            cancelled=stopped,
            checkpoint=Checkpoint(options.out / "state.safetensors", job, options.save_every, options.resume),
        )
    for number, picture in enumerate(made):
        save_picture(options.out / f"image-{number}.png", picture)
    _write_record(options.out / "run.json", {**job, "seconds": bar.seconds})
    print(f"wrote {len(made)} pictures to {options.out}")


def _settings(kind: type[S], options: argparse.Namespace, **others: Any) -> S:
    """A settings dataclass from the options of the same names."""
    named = {f.name: getattr(options, f.name) for f in fields(kind) if f.name not in others}  # type: ignore[arg-type]
    return kind(**named, **others)


def _size(options: argparse.Namespace, prior: HeadlessPrior, init: Tensor | None) -> tuple[int, int]:
    """(height, width) to make: as asked, else the starting picture's, else the model's own."""
    size = prior.default_size if init is None else (init.shape[1], init.shape[2])
    if options.size is None:
        return size
    width, cross, height = options.size.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise ValueError(f"size '{options.size}' must be WIDTHxHEIGHT in pixels, such as 512x512")
    asked = int(height), int(width)
    if init is not None and asked != size:
        raise ValueError(f"{options.init} is {size[1]}x{size[0]} pixels, not {options.size} as asked for")
    return asked


def _check_folder(folder: Path) -> None:
    """Raise unless files can be written to `folder`, without making it yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {folder}: no permission")


def _write_record(path: Path, run: dict[str, Any]) -> None:
    """What was run, in JSON: enough to run it again."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in ("dreamflow", "torch")}}
    record = {**run, "versions": versions}
    write_bytes(path, json.dumps(record, indent=2, default=lambda tensor: tensor.tolist()).encode())


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


class _ProgressBar:
    """Iterations, level and time left on standard error."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(unit="it", file=sys.stderr, leave=False)

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Progress) -> None:
        self.seconds = progress.seconds
        if self._bar.total is None:
            # A resumed run starts part of the way through.
            self._bar.reset(total=progress.steps)
            self._bar.initial = self._bar.last_print_n = progress.step - 1
            self._bar.n = progress.step - 1
        level = f"level {progress.level}/{progress.levels}, sigma {progress.sigma:.3g}"
        self._bar.set_postfix_str(level, refresh=False)
        self._bar.update()


if __name__ == "__main__":
    sys.exit(main())
