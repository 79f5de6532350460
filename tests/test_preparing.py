"""Progress of long preparations, told to whoever listens."""

from __future__ import annotations

import pytest

from dreamflow_core.preparing import listening, track


def test_whoever_listens_is_told_and_nobody_else():
    told: list[tuple[str, float]] = []
    with listening(lambda *news: told.append(news)):
        assert list(track("baking", "abcd")) == ["a", "b", "c", "d"]
        assert list(track("nothing", [])) == []
    assert told == [
        ("baking", 0.0),
        ("baking", 0.25),
        ("baking", 0.5),
        ("baking", 0.75),
        ("baking", 1.0),
        ("nothing", 1),
    ]
    assert list(track("baking", range(3))) == [0, 1, 2] and len(told) == 6


def test_a_listener_ends_the_work_by_raising():
    done = []

    def stop(_: str, share: float) -> None:
        if share >= 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError), listening(stop):
        done.extend(track("baking", range(4)))
    assert done == [0, 1]
