"""`dreamflow image`: pictures."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..job import of_file
from ..pictures import load_picture, save_picture
from ..pipeline import images
from ..priors.load import HeadlessPrior, job_of, load_prior
from ..settings.stages import ImageSettings
from .options import add_model_options, add_output, add_resume, add_settings, read_model, read_settings
from .run import Run

_INIT = "start from this picture, seen on white, instead of noise; lower --start with it"


def add_commands(commands: Any) -> None:
    parser = commands.add_parser("image", help="text to image, or image to image", description=_image.__doc__)
    parser.set_defaults(command=_image)
    add_output(parser)
    add_resume(parser)
    add_model_options(parser)
    add = parser.add_argument
    add("--size", metavar="WxH", help="in pixels; by default the model's own, or that of --init")
    add("--init", type=Path, metavar="PICTURE", help=_INIT)
    add_settings(parser, ImageSettings())


def _image(options: argparse.Namespace) -> None:
    """Make pictures by the flow and write them as PNG files."""
    model, settings = read_model(options), read_settings(options, ImageSettings())
    init = None if options.init is None else load_picture(options.init)
    prior = load_prior(model)
    size = _size(options, prior, init)
    job = {"model": asdict(model), "size": list(size), "settings": asdict(settings), "init": str(options.init)}
    how = {"states": options.out, "resume": options.resume, "save_every": options.save_every}
    run = Run(options.out, job, ["image"], **how)
    files = {"model": job_of(model), "init": str(None) if options.init is None else of_file(options.init)}
    made = run.optimise("image", partial(images, prior, settings, size, init=init), **{**job, **files})
    for number, picture in enumerate(made):
        save_picture(options.out / f"image-{number}.png", picture)
    run.write_record()
    print(f"wrote {len(made)} pictures to {options.out}")


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
