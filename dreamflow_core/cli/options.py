"""Command line options made from settings dataclasses: their names, types, defaults and docs are the options'."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..apfo import Checkpoint
from ..hints import HINT_KINDS
from ..priors.load import DTYPES, PriorSettings
from ..settings.presets import FAMILIES

S = TypeVar("S")

_NAMED = ("phi", "grid", "nerf", "extract", "tune", "refine", "turntable")
"""Settings within settings whose options begin with their name; the others' are unique without."""


def add_settings(
    parser: argparse.ArgumentParser, *variants: Any, prefix: str = "", shown: Mapping[str, str] | None = None
) -> None:
    """An option for every number, word and switch in some settings.

    Args:
        variants: settings of one type, whose values the help shows as defaults. An option that is not
            given leaves no trace in the namespace, so `read_settings` can start from any of them.
        prefix: of the options' names.
        shown: by option, what the help shows as its default instead.
    """
    kind = type(variants[0])
    hints, docs = get_type_hints(kind), dict(_attribute_docs(kind))
    for name in (f.name for f in fields(kind)):
        values = [getattr(settings, name) for settings in variants]
        if is_dataclass(values[0]):
            add_settings(parser, *values, prefix=_inner(prefix, name), shown=shown)
            continue
        default = (shown or {}).get(prefix + name) or _defaults(values)
        parser.add_argument(
            "--" + (prefix + name).replace("_", "-"),
            dest=prefix + name,
            default=argparse.SUPPRESS,
            help=f"{docs[name]} (default: {default})".replace("%", "%%"),
            **_form(hints[name]),
        )


def read_settings(options: argparse.Namespace, settings: S, prefix: str = "") -> S:
    """The settings with what the options change."""
    changes: dict[str, Any] = {}
    for name in (f.name for f in fields(settings)):  # type: ignore[arg-type]
        value = getattr(settings, name)
        if is_dataclass(value):
            changes[name] = read_settings(options, value, _inner(prefix, name))
        elif hasattr(options, prefix + name):
            given = getattr(options, prefix + name)
            changes[name] = tuple(given) if isinstance(given, list) else given
    return replace(settings, **changes)  # type: ignore[type-var]


def _inner(prefix: str, name: str) -> str:
    return f"{prefix}{name}_" if name in _NAMED else prefix


def _form(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of a type: a number, a word, one of them or None, a range, or yes by being there."""
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "nargs": 2, "metavar": ("LOW", "HIGH")}
    if isinstance(hint, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    return {"type": hint, "metavar": {int: "N", float: "X", str: "WORD"}[hint]}


def _defaults(values: Sequence[Any]) -> str:
    """One value for all models and presets, or what it is by."""
    shown = [" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
    return shown[0] if len(set(shown)) == 1 else f"by model and preset, {shown[0]} for a draft with the demo model"


def _attribute_docs(kind: type) -> Iterator[tuple[str, str]]:
    """What the docstrings of a dataclass and its bases say of each attribute, on one line."""
    for base in reversed(kind.__mro__[:-1]):
        _, _, section = (inspect.getdoc(base) or "").partition("\nAttributes:\n")
        section = section.split("\n\n")[0]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            for name in names.split(", "):
                yield name, " ".join(text.split()).removesuffix(".")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """How a run that was stopped goes on."""
    every = Checkpoint.every
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    help_ = f"between saved states (default: {every:g})"
    parser.add_argument("--save-every", type=float, default=every, metavar="SECONDS", help=help_)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """A prompt and the model that draws it."""
    add = parser.add_argument
    model = PriorSettings(model="demo", positive="")
    add("positive", metavar="PROMPT", help="what to make")
    add("--model", default=model.model, help="demo, a diffusers folder or a .safetensors checkpoint (default: demo)")
    away = "what to keep away from (default: nothing; for the demo models in 3D the prompt without a view)"
    add("--negative", default=model.negative, metavar="PROMPT", help=away)
    scales = ", ".join(f"{family.cfg:g} for {family.name}" for family in FAMILIES.values())
    scale = f"guidance scale (default: {scales}, 1 for those distilled by name)"
    add("--cfg", type=float, metavar="X", help=scale)
    add("--lora", dest="loras", action="append", default=[], metavar="FILE[:WEIGHT]", help="may be repeated")
    add_controls(parser)
    add("--dtype", choices=list(DTYPES), default=model.dtype, help=f"of a diffusers model's weights ({model.dtype})")
    add("--config", metavar="FOLDER", help="diffusers folder to configure a single-file checkpoint from")
    add("--vae", metavar="FILE|FOLDER", help="VAE to use instead of a diffusers model's own")
    best = "cpu, cuda, mps or xpu (default: the accelerator that torch finds, else the CPU)"
    add("--device", metavar="NAME", help=best)
    twice = "let a diffusers model compute parts twice instead of keeping them: slower, in less memory"
    add("--save-memory", action="store_true", help=twice)


def add_controls(parser: argparse.ArgumentParser, stage: str = "") -> None:
    """ControlNets and what each is shown, of all stages or of one."""
    option, name = (f"--{stage}-", f"{stage}_") if stage else ("--", "")
    net = "a ControlNet that is shown the scene in every view; of a refiner --refine-controlnet; may be repeated"
    hint = "what it is shown; one for each --controlnet"
    if stage:
        net, hint = f"as --controlnet, for the {stage} stage alone", f"as --hint, for --{stage}-controlnet"
    add = parser.add_argument
    add(
        f"{option}controlnet", dest=f"{name}controlnets", action="append", default=[], metavar="FILE[:WEIGHT]", help=net
    )
    add(f"{option}hint", dest=f"{name}hints", action="append", default=[], choices=list(HINT_KINDS), help=hint)


def read_model(options: argparse.Namespace, **others: Any) -> PriorSettings:
    """The model of `add_model_options`, with other values for some of its settings."""
    named = {f.name: getattr(options, f.name) for f in fields(PriorSettings)}
    return PriorSettings(**{**named, **others})
