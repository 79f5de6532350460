from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamflow_core import state
from dreamflow_core.state import BadFile, load_state, make_generator, save_state


def test_round_trip(tmp_path: Path):
    shared = torch.randn(3, 4)
    saved = {
        "numbers": [1, 2.5, None, True, "text"],
        "tensors": {0: shared, 1: shared.T, "half": torch.ones(2, dtype=torch.bfloat16)},
        "generator": torch.Generator().manual_seed(3).get_state(),
    }
    save_state(tmp_path / "s", saved)
    loaded = load_state(tmp_path / "s")
    assert loaded["numbers"] == saved["numbers"]
    assert list(loaded["tensors"]) == [0, 1, "half"]
    for key, tensor in saved["tensors"].items():
        assert torch.equal(loaded["tensors"][key], tensor) and loaded["tensors"][key].dtype == tensor.dtype
    assert torch.equal(loaded["generator"], saved["generator"])


def test_optimiser_continues_bit_equal(tmp_path: Path):
    def steps(weights, optimiser, count):
        for _ in range(count):
            weights.grad = torch.sin(weights.detach() * 3)
            optimiser.step()

    whole = torch.nn.Parameter(torch.ones(4))
    steps(whole, torch.optim.Adam([whole], lr=0.1), 6)
    part = torch.nn.Parameter(torch.ones(4))
    optimiser = torch.optim.Adam([part], lr=0.1)
    steps(part, optimiser, 3)
    save_state(tmp_path / "s", {"weights": part, "optimiser": optimiser.state_dict()})
    loaded = load_state(tmp_path / "s")
    again = torch.nn.Parameter(loaded["weights"])
    optimiser = torch.optim.Adam([again], lr=0.1)
    optimiser.load_state_dict(loaded["optimiser"])
    steps(again, optimiser, 3)
    assert torch.equal(again, whole)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    save_state(tmp_path / "s", {"value": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(state.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "s", {"value": 2})
    assert load_state(tmp_path / "s") == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_bad_files_are_named(tmp_path: Path):
    with pytest.raises(BadFile, match=r"no file .*missing"):
        load_state(tmp_path / "missing")
    (tmp_path / "broken").write_bytes(b"not a safetensors file")
    with pytest.raises(BadFile, match="broken cannot be loaded"):
        load_state(tmp_path / "broken")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(BadFile, match="not a saved state"):
        load_state(tmp_path / "foreign")


def test_generators_are_independent_and_repeat():
    draws = {(s, p): torch.rand(3, generator=make_generator(s, p)) for s in (0, 1) for p in ("noise", "views")}
    assert torch.equal(draws[0, "noise"], torch.rand(3, generator=make_generator(0, "noise")))
    values = list(draws.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
