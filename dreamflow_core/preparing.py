"""How far long preparations are, for whoever listens: the command's bar, or a node's.

with listening(bar):
    ...
    for part in track("painting the texture", parts):
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

Listener = Callable[[str, float], None]
"""Is told what is being prepared and the share of it that is done, from 0 to 1; what it raises ends the work."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener` is told of everything that is tracked."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, while whoever listens is told how many of them are done."""
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener is not None:
            listener(what, done / len(items))
        yield item
    if listener is not None:
        listener(what, 1.0)
