"""The `dreamflow` command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from ..apfo import Cancelled, NotFinite
from . import generate, image, stages

PROG = "dreamflow"
BAD_INPUT, INTERRUPTED = 2, 130
"""Exit statuses."""
_OUT_OF_MEMORY = (
    "the GPU has not enough memory for this; --save-memory, --dtype fp16, fewer views or a smaller size at once take"
    " less (--help has their names)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Bad input is one line on standard error and status 2."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options.command(options)
    except (ValueError, OSError, NotFinite, ImportError) as error:
        return _complain(str(error), BAD_INPUT)
    except torch.OutOfMemoryError:
        return _complain(_OUT_OF_MEMORY, BAD_INPUT)
    except Cancelled as stopped:
        return _complain(f"{stopped}; the same command with --resume continues", INTERRUPTED)
    except KeyboardInterrupt:
        return _complain("stopped; a saved state, if there is one yet, is continued by --resume", INTERRUPTED)
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
    for module in (generate, stages, image):
        module.add_commands(commands)
    return parser
