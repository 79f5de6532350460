"""The demo model: its training, its file, its sampler, and what the shipped weights can do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gaussian import GaussianPrior

from dreamflow_core.cameras import Cameras, orbit
from dreamflow_core.demo import train, truth
from dreamflow_core.demo.dataset import SurfaceBank
from dreamflow_core.demo.model import (
    MODELS,
    WEIGHTS,
    Attention,
    DemoModel,
    ModelConfig,
    _rotate,
    load_model,
    save_model,
)
from dreamflow_core.demo.shapes import WITH_FRONT
from dreamflow_core.demo.train import Recipe, Run, learning_rate, sample_sigma
from dreamflow_core.priors.demo import DemoPrior
from dreamflow_core.sampler import heun
from dreamflow_core.schedule import log_uniform
from dreamflow_core.state import BadFile, save_state
from dreamflow_core.training import Muon, orthogonalise

CONFIG = ModelConfig(16, 2, (16, 32), (1,), (1,), (False,), 1, 32, 8, sigma_min=0.02, sigma_max=20.0)
RECIPE = Recipe(CONFIG, views=4, cycles=((6, 4e-3),), log_sigma=(-0.3, 1.5), batch=8, warmup=2)
CPU = torch.device("cpu")
needs_judge = pytest.mark.skipif(
    not (WEIGHTS / "judge.safetensors").exists(),
    reason="the judge's weights are not there; make them with python -m dreamflow_core.demo.judge",
)


@pytest.fixture(scope="module")
def bank() -> SurfaceBank:
    return SurfaceBank(16, views=4, half="model", seed=0)


def test_training_resumes_bit_equal(bank, tmp_path: Path):
    whole = Run(RECIPE, CPU)
    losses = [whole.advance(bank) for _ in range(6)]
    first = Run(RECIPE, CPU)
    again = [first.advance(bank) for _ in range(3)]
    first.save(tmp_path / "run.safetensors")
    second = Run(replace(RECIPE, seed=9), CPU)
    second.recipe = RECIPE
    second.load(tmp_path / "run.safetensors")
    again += [second.advance(bank) for _ in range(3)]
    assert again == losses
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(second.model.named_parameters())[name]), name
        assert torch.equal(whole.average[name], second.average[name]), name


def test_training_lowers_the_loss(bank):
    run = Run(replace(RECIPE, cycles=((120, 4e-3),), batch=16), CPU)
    losses = [run.advance(bank) for _ in range(120)]
    # 1 is the loss of a network that predicts nothing.
    assert sum(losses[:5]) / 5 > 1
    assert sum(losses[-20:]) / 20 < 0.9


def test_muon_updates_are_nearly_orthogonal():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    for m in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(m))
        assert values.min() > 0.6 and values.max() < 1.3


def test_weights_do_not_grow_without_bound():
    """Steps of one size in random directions: without decay the size of weights would grow with their root."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(8, 8))
    muon = Muon([p], lr=0.1, momentum=0.0)
    for _ in range(2000):
        p.grad = torch.randn(8, 8, generator=generator)
        muon.step()
    # Where decay and steps of 0.2 lr balance: 0.2 sqrt(lr / (2 decay)).
    assert 0.7 < p.detach().square().mean().sqrt() / (0.2 * math.sqrt(0.1 / (2 * 0.1))) < 1.4


def test_attention_scores_depend_on_where_cells_lie_to_each_other():
    layer = Attention(32)
    query, key = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    angles = layer._angles(6, 5)
    turned = (_rotate(v.expand(30, 32), angles) for v in (query, key))
    scores = torch.einsum("qc,kc->qk", *turned).view(6, 5, 6, 5)
    assert torch.allclose(scores[0, 0, 2, 1], scores[3, 2, 5, 3], atol=1e-4)
    assert torch.allclose(scores[4, 4, 1, 4], scores[5, 0, 2, 0], atol=1e-4)
    assert not torch.allclose(scores[0, 0, 2, 1], scores[0, 0, 1, 2], atol=0.1)


def test_learning_rate_warms_up_and_falls_to_nothing_in_every_cycle():
    recipe = replace(RECIPE, cycles=((100, 4e-3), (40, 2e-3)), warmup=10, decay=0.5)
    rates = [learning_rate(step, recipe) for step in range(141)]
    assert rates[:10] == pytest.approx([4e-4 * step for step in range(1, 11)]) and rates[50] == 4e-3
    assert rates[75] == pytest.approx(2e-3) and rates[99] == pytest.approx(8e-5)
    assert rates[100] == pytest.approx(2e-4) and rates[120] == 2e-3 and rates[130] == pytest.approx(1e-3)
    assert rates[140] == 0 and recipe.steps == 140


def test_noise_levels_are_log_normal():
    sigma = sample_sigma(4000, replace(RECIPE, log_sigma=(-0.5, 0.7)), torch.Generator().manual_seed(0))
    assert sigma.log().mean().item() == pytest.approx(-0.5, abs=0.01)
    assert sigma.log().std().item() == pytest.approx(0.7, abs=0.01)


def test_model_file_round_trip(tmp_path: Path):
    model = DemoModel(CONFIG)
    save_model(model, tmp_path / "m.safetensors", {"note": "x"})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
    assert not any(p.requires_grad for p in loaded.parameters())


def test_bad_model_files_are_named(tmp_path: Path):
    with pytest.raises(BadFile, match=r"no file .*gone"):
        load_model(tmp_path / "gone")
    (tmp_path / "bad").write_bytes(b"0123456789")
    with pytest.raises(BadFile, match="bad cannot be loaded"):
        load_model(tmp_path / "bad")
    save_state(tmp_path / "foreign", {"weights": torch.ones(1)})
    with pytest.raises(BadFile, match="is not a demo model"):
        load_model(tmp_path / "foreign")


def test_guidance_of_views_keeps_away_from_the_same_words_without_a_view():
    prompt, views = "a blue plain car", orbit(2, 20, 3, 40)  # from the front and from the back
    model = load_model(MODELS["demo"])
    z_t = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def estimate(words: str, away: str | None = None, cfg: float = 1.0, seen: Cameras | None = views) -> torch.Tensor:
        with torch.no_grad():
            return DemoPrior(model, words, away, cfg).denoise(z_t, 2.0, seen, guided=True)

    asked, same, nothing = estimate(prompt), estimate(prompt, seen=None), estimate("", seen=None)
    torch.testing.assert_close(estimate(prompt, cfg=3.0), same + 3 * (asked - same))
    torch.testing.assert_close(estimate(prompt + ", seen from the back", cfg=3.0)[1], (same + 3 * (asked - same))[1])
    torch.testing.assert_close(estimate(prompt, "", 3.0), nothing + 3 * (asked - nothing))
    # A picture has no view to bring out: what is left is guidance away from the unconditional model.
    torch.testing.assert_close(estimate(prompt, None, 3.0, None), nothing + 3 * (same - nothing))


@pytest.mark.parametrize("shape", WITH_FRONT)
def test_the_model_knows_left_from_right(shape):
    """A true picture from a side, noised, is told better with that side's words than with the other's."""
    cameras = truth.demo_cameras(torch.tensor([90.0, -90.0]), torch.tensor([15.0, 15.0]))
    surface = truth.trace(shape, cameras, 64)
    blue, beige = (torch.tensor([colour] * 2) for colour in (truth.COLOURS["blue"], truth.BACKGROUNDS["beige"]))
    images = truth.paint(surface.alpha, surface.shade(), torch.zeros_like(surface.alpha), blue, blue, beige) * 2 - 1
    sides = images.repeat(8, 1, 1, 1)
    z_t = sides + 8.0 * torch.randn(sides.shape, generator=torch.Generator().manual_seed(0))
    prior = DemoPrior(load_model(MODELS["demo"]), f"a blue {shape}, on a beige background")
    errors = []
    for azimuth in (90.0, -90.0):
        words = truth.demo_cameras(torch.tensor([azimuth, -azimuth]).repeat(8), torch.full((16,), 15.0))
        with torch.no_grad():
            errors.append((prior.denoise(z_t, 8.0, words, guided=False) - sides).square().mean().item())
    assert errors[0] < 0.8 * errors[1]


def test_heun_solves_a_gaussian_flow():
    """dx/dsigma = sigma (x - mu) / (s^2 + sigma^2): x - mu shrinks with sqrt(s^2 + sigma^2)."""
    mu, s, high, low = 0.4, 0.5, 10.0, 0.1
    prior = GaussianPrior(mu, s)
    noise = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = mu + (high * noise - mu) * math.sqrt((s**2 + low**2) / (s**2 + high**2))
    errors = [(heun(prior, noise, log_uniform(high, low, n).double()) - exact).abs().max().item() for n in (20, 40, 80)]
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_training_goes_on_from_the_weights_of_the_recipe_before(monkeypatch, tmp_path: Path):
    recipes = {"first": replace(RECIPE, variety=2.0), "second": replace(RECIPE, start="first")}
    monkeypatch.setattr(train, "RECIPES", recipes)
    monkeypatch.setattr(train, "learning_rate", lambda step, recipe: 4e-3 if recipe.start is None else 0.0)
    train.train("second", tmp_path, tmp_path / "out.safetensors")
    first = load_model(tmp_path / "demo-first.safetensors").state_dict()
    second = load_model(tmp_path / "out.safetensors").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)
    assert second["output.weight"].abs().max() > 0
    # A run that has begun no longer needs what it started from.
    (tmp_path / "demo-first.safetensors").unlink()
    train.train("second", tmp_path, tmp_path / "again.safetensors")
    assert not (tmp_path / "demo-first.safetensors").exists()
    assert (tmp_path / "again.safetensors").exists()


def test_shipped_files_are_small():
    sizes = {path.name: path.stat().st_size for path in MODELS.values()}
    assert sum(sizes.values()) <= 16 * 2**20, sizes


@needs_judge
@torch.no_grad()
def test_judge_grades_the_truth():
    """The judge on fresh true renders of its half of the views."""
    from dreamflow_core.demo.judge import grade, load_judge
    from dreamflow_core.demo.vocabulary import SLOTS, Description

    batch = SurfaceBank(64, views=10, half="judge", seed=77).batch(240, torch.Generator().manual_seed(5))
    names = list(SLOTS)
    descriptions = [
        Description(**{n: SLOTS[n][i - 1] if i else None for n, i in zip(names, row)}) for row in batch.truth.tolist()
    ]
    verdict = grade(load_judge(), batch.images / 2 + 0.5, descriptions)
    assert verdict.shape.float().mean() >= 0.97
    assert verdict.pattern.float().mean() >= 0.95
    assert verdict.colour.float().mean() >= 0.98


@needs_judge
def test_judge_fails_what_is_wrong():
    """Every grade is met by chance only when the descriptions are shuffled against the images."""
    from dreamflow_core.demo.judge import grade, load_judge
    from dreamflow_core.demo.vocabulary import Description

    red_cube = Description("cube", "red", None, "plain", None, "white")
    images = torch.full((1, 3, 64, 64), 0.97)
    images[:, :, 18:46, 18:46] = torch.tensor([0.1, 0.2, 0.88])[None, :, None, None]
    verdict = grade(load_judge(), images, [red_cube])
    assert not verdict.colour.any()
    blue = grade(load_judge(), images, [replace(red_cube, colour="blue")])
    assert blue.colour.all()
