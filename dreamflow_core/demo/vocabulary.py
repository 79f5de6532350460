"""The words of a demo prompt.

A prompt is free text over a small vocabulary, "a red and blue striped duck, seen from the front, on a
white background"; order matters only between two colours. It is read into a `Description` with one
value per slot, where None means "anything". Those slots are what the demo model is conditioned on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from ..cameras import VIEW_NAMES
from .shapes import SHAPES
from .truth import BACKGROUNDS, COLOURS, PATTERNS

EITHER_SIDE = {
    "front-quarter": ("front-left", "front-right"),
    "side": ("left", "right"),
    "back-quarter": ("back-left", "back-right"),
}
"""Words for views from the one side or the other."""

SLOTS: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "second": tuple(COLOURS),
    "pattern": PATTERNS,
    "view": (*VIEW_NAMES, *EITHER_SIDE),
    "background": tuple(BACKGROUNDS),
}
"""Values of each field of a `Description`, in the order in which the model knows them."""

_QUARTER = re.compile(r"\b(front|back|rear)(?:[ -](left|right))?[ -](?:three-)?quarter\b")
_SIDE = re.compile(r"\b(left|right)[ -]side\b")
_SYNONYMS = {
    "grey": "gray",
    "above": "overhead",
    "underneath": "below",
    "under": "below",
    "behind": "back",
    "rear": "back",
    "rear-quarter": "back-quarter",
    "rear-left": "back-left",
    "rear-right": "back-right",
    "checked": "checkered",
    "dotted": "spotted",
}
_FILLERS = {"a", "an", "the", "and", "with", "of", "on", "in", "from", "its", "seen", "view", "background", "object"}


class UnknownWord(ValueError):
    """A demo prompt used a word that the demo model was not trained on."""


@dataclass(frozen=True)
class Description:
    """What a demo prompt asks for; None leaves a slot open.

    `second` is the colour of a pattern's other half and is open for a plain object.
    """

    shape: str | None = None
    colour: str | None = None
    second: str | None = None
    pattern: str | None = None
    view: str | None = None
    background: str | None = None

    def indices(self) -> tuple[int, ...]:
        """Index per slot: 0 for open, else 1 + position in `SLOTS`."""
        return tuple(0 if value is None else 1 + SLOTS[name].index(value) for name, value in zip(SLOTS, astuple(self)))

    def prompt(self) -> str:
        """The description in words; `parse` reads it back."""
        colours = " and ".join(c for c in (self.colour, self.second) if c)
        words = " ".join(w for w in (colours, self.pattern, self.shape or "object") if w)
        view = {"overhead": ", seen from above", "below": ", seen from below", None: ""}
        background = f", on a {self.background} background" if self.background else ""
        return f"a {words}{view.get(self.view, f', seen from the {self.view}')}{background}"


def parse(prompt: str) -> Description:
    """Read a prompt.

    A shape named without a pattern is plain. An empty prompt leaves everything open.

    Raises:
        UnknownWord: names the word, and the words that are known.
        ValueError: a slot is named twice (two shapes, three colours...).
    """
    found: dict[str, str] = {}
    joined = _QUARTER.sub(lambda m: f"{m[1]}-{m[2] or 'quarter'}", _SIDE.sub(r"\1", prompt.lower()))
    for word in re.findall(r"[^\s,.;]+", joined):
        word = _SYNONYMS.get(word, word)
        if word in _FILLERS:
            continue
        slots = [name for name, values in SLOTS.items() if word in values]
        if not slots:
            raise UnknownWord(f"the demo model does not know the word '{word}'. It knows {known_words()}")
        free = next((name for name in slots if name not in found), None)
        if free is None:
            raise ValueError(f"'{word}' is one {slots[-1]} too many in the demo prompt '{prompt}'")
        found[free] = word
    if "shape" in found and "pattern" not in found:
        found["pattern"] = "striped" if "second" in found else "plain"
    return Description(**found)


def without_side(view: str) -> str:
    """The name of a view, less which side it is from."""
    return next((general for general, sides in EITHER_SIDE.items() if view in sides), view)


def known_words() -> str:
    """The vocabulary in one line, by slot."""
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in SLOTS.items() if name != "second")


def all_descriptions(fields_: Iterable[str]) -> list[Description]:
    """Every combination of the named slots, the others open; a pattern never has one colour twice."""
    combinations: list[dict[str, str]] = [{}]
    for name in fields_:
        combinations = [{**c, name: value} for c in combinations for value in SLOTS[name]]
    kept = []
    for c in combinations:
        if c.get("pattern") == "plain":
            c.pop("second", None)
        if "colour" not in c or c["colour"] != c.get("second"):
            kept.append(Description(**c))
    return list(dict.fromkeys(kept))


assert tuple(f.name for f in fields(Description)) == tuple(SLOTS)
