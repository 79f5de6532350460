"""The loop against closed forms, and what it promises: cancelling, resuming, refusing NaN."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from gaussian import GaussianPrior, PointAPFO, posterior_mean

from dreamflow_core import parameterisation
from dreamflow_core.apfo import Cancelled, Checkpoint, NotFinite, optimise
from dreamflow_core.demo.model import DemoModel, ModelConfig
from dreamflow_core.guidance import APFO, SDS, VSD
from dreamflow_core.priors.demo import DemoPrior
from dreamflow_core.scenes.image import ImageScene, image_noise
from dreamflow_core.schedule import Schedule, log_uniform
from dreamflow_core.settings.stages import PhiSettings
from dreamflow_core.state import BadFile, load_state, save_state

TINY = ModelConfig(16, 2, (16, 32), (1,), (1,), (False,), 1, 32, 8, sigma_min=0.02, sigma_max=20.0)


def tiny_model() -> DemoModel:
    """A small demo model with random weights, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DemoModel(TINY)
        for p in model.parameters():
            if p.abs().sum() == 0:
                torch.nn.init.normal_(p, std=0.05)
    return model


def tiny_run(prior=None, guidance=None, phi=None, iterations=8, seed=3, **options) -> torch.Tensor:
    scene = ImageScene(torch.zeros(2, 3, 16, 16), learning_rate=0.01 if isinstance(guidance, (SDS, VSD)) else None)
    prior = prior or DemoPrior(tiny_model(), "a red cube", cfg=1.5)
    optimise(scene, prior, Schedule(log_uniform(5, 0.1, iterations)), guidance or APFO(), phi, seed=seed, **options)
    return scene.values.detach()


def particles(count: int, mean: float, std: float) -> torch.Tensor:
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return mean + std * noise


def test_point_scene_follows_the_probability_flow():
    """With D_phi = z the mean obeys dz/dsigma = sigma (z - mu) / (s^2 + sigma^2), a known curve."""
    mu, s, high, low, start = 0.7, 0.5, 10.0, 0.05, 3.0
    scene = ImageScene(particles(20000, start, 0.0))
    levels = log_uniform(high, low, 400).double()
    optimise(scene, GaussianPrior(mu, s), Schedule(levels), PointAPFO(), seed=0)
    exact = mu + (start - mu) * ((s**2 + low**2) / (s**2 + high**2)) ** 0.5
    assert scene.values.mean().item() == pytest.approx(exact, abs=0.02)


def test_step_size_is_first_order():
    """Halving the steps halves the distance to the exact flow (the noise is averaged out by symmetry)."""
    mu, s, high, low, start = 0.0, 1.0, 4.0, 0.5, 2.0
    exact = start * ((s**2 + low**2) / (s**2 + high**2)) ** 0.5
    errors = []
    for levels in (20, 40, 80):
        z = torch.tensor(start, dtype=torch.float64)
        schedule = Schedule(log_uniform(high, low, levels))
        for index in range(len(schedule)):
            sigma, weight = APFO().step(schedule, index, torch.Generator())
            z = z + weight * (posterior_mean(z, sigma, mu, s) - z)
        errors.append(abs(z.item() - exact))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_gaussian_scene_follows_its_moments():
    """With a Gaussian phi every particle moves linearly, so mean and variance have a recursion."""
    mu, s, m, v = -1.0, 0.4, 1.0, 0.8
    prior = GaussianPrior(mu, s, scene=(m, v))
    schedule = Schedule(log_uniform(5, 0.5, 30).double())
    scene = ImageScene(particles(40000, m, v))
    optimise(scene, prior, schedule, APFO(), PhiSettings(rank=1, learning_rate=0.0), seed=0)
    mean, variance = m, v**2
    for index in range(len(schedule)):
        sigma, weight = APFO().step(schedule, index, torch.Generator())
        slope = weight * (s**2 / (s**2 + sigma**2) - v**2 / (v**2 + sigma**2))
        pull = weight * sigma**2 * (mu / (s**2 + sigma**2) - m / (v**2 + sigma**2))
        mean = (1 + slope) * mean + pull
        variance = (1 + slope) ** 2 * variance + (slope * sigma) ** 2
    assert scene.values.mean().item() == pytest.approx(mean, abs=0.02)
    assert scene.values.var().item() == pytest.approx(variance, rel=0.03)


class KnownPhiPrior(GaussianPrior):
    """Its phi knows the mean and the spread that the particles of `values` have at the moment."""

    values: torch.Tensor

    def denoise(self, z_t, sigma, views, *, guided):
        values = self.values.detach()
        self.scene = (values.mean().item(), values.std().item())
        return super().denoise(z_t, sigma, views, guided=guided)


@pytest.mark.parametrize("start,share", [(0.5, 1.0), (0.005, 0.32)])
def test_spread_that_the_start_lacks_is_not_made_up_for(start, share):
    """Why images start from noise with the spectrum of images. The exact variance has a recursion."""
    s = 0.5
    prior = KnownPhiPrior(0.0, s)
    scene = ImageScene(particles(20000, 0.0, start))
    prior.values = scene.values
    schedule = Schedule(log_uniform(40, 0.002, 400).double())
    optimise(scene, prior, schedule, APFO(), PhiSettings(rank=1, learning_rate=0.0), seed=0)
    variance = start**2
    for index in range(len(schedule)):
        sigma, weight = APFO().step(schedule, index, torch.Generator())
        slope = weight * (s**2 / (s**2 + sigma**2) - variance / (variance + sigma**2))
        variance = (1 + slope) ** 2 * variance + (slope * sigma) ** 2
    assert variance**0.5 == pytest.approx(share * s, rel=0.02)
    assert scene.values.std().item() == pytest.approx(variance**0.5, rel=0.02)


def test_image_noise_has_the_spectrum_of_images():
    noise = image_noise((64, 3, 32, 48), torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    # By columns, then by rows: four times the frequency, 4^-3 of the power.
    assert (power[0, 8] / power[0, 2]).item() == pytest.approx(4**-3, rel=0.2)
    assert (power[8, 0] / power[2, 0]).item() == pytest.approx(4**-3, rel=0.2)
    assert (power[0, 0] / power[0, 1]).item() == pytest.approx(2**3, rel=0.3)


class Wrapped(GaussianPrior):
    """The Gaussian prior behind a network of a given kind of prediction."""

    def __init__(self, kind: parameterisation.Parameterisation, sigma_of_time, **gaussian):
        super().__init__(**gaussian)
        self.kind, self.sigma_of_time = kind, sigma_of_time

    def network_output(self, x, time):
        """The F that makes D the posterior mean: only x and time are known to it."""
        sigma = self.sigma_of_time(time)
        c = self.kind.coefficients(sigma)
        c_in, c_skip, c_out = (k.view(-1, 1, 1, 1) for k in (c.c_in, c.c_skip, c.c_out))
        z_t = x / c_in
        return (posterior_mean(z_t, sigma.view(-1, 1, 1, 1), self.mean, self.std) - c_skip * z_t) / c_out

    def denoise(self, z_t, sigma, views, *, guided):
        levels = torch.full((len(z_t),), sigma, dtype=z_t.dtype)
        return self.kind.denoise(self.network_output, z_t, levels)


def test_every_parameterisation_gives_the_same_update():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    table = ((1 - alphas) / alphas).log() / 2

    def discrete(time):
        below = time.floor().long().clamp(0, 998)
        return torch.lerp(table[below], table[below + 1], time - below).exp()

    kinds = [
        (parameterisation.edm(0.5, 0.01, 80), lambda time: (4 * time).exp()),
        (parameterisation.eps(alphas), discrete),
        (parameterisation.v(alphas), discrete),
        (parameterisation.flow(), lambda time: (time / 1000) / (1 - time / 1000)),
    ]
    results = []
    for kind, sigma_of_time in kinds:
        scene = ImageScene(particles(8, 0.0, 1.0))
        prior = Wrapped(kind, sigma_of_time, mean=1.0, std=0.3)
        optimise(scene, prior, Schedule(log_uniform(10, 0.1, 20)), PointAPFO(), seed=5)
        results.append(scene.values.detach())
    moved = (results[0] - particles(8, 0.0, 1.0)).abs().mean()
    assert moved > 0.3
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-9)


def test_fixed_point_of_exact_phi():
    """Where phi is the prior nothing moves: D_p - D_phi vanishes."""
    scene = ImageScene(particles(100, 0.3, 0.5))
    prior = GaussianPrior(0.3, 0.5, scene=(0.3, 0.5))
    schedule = Schedule(log_uniform(5, 0.1, 5))
    optimise(scene, prior, schedule, APFO(), PhiSettings(rank=1, learning_rate=0.0), seed=0)
    torch.testing.assert_close(scene.values.detach(), particles(100, 0.3, 0.5))


@pytest.mark.parametrize("level", ["current", "random"])
def test_phi_learns_the_scene(level):
    """phi's loss on a scene that stands still falls well below the untrained one's."""
    prior = DemoPrior(tiny_model(), "a red cube", cfg=1.0)
    losses = []
    scene = ImageScene(torch.full((2, 3, 16, 16), 0.3), learning_rate=1e-9)
    schedule = Schedule(log_uniform(1.0, 0.9, 150))
    settings = PhiSettings(learning_rate=3e-3, level=level)
    optimise(scene, prior, schedule, VSD(), settings, seed=0, on_progress=lambda p: losses.append(p.losses["phi"]))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_base_weights_and_hooks_are_untouched():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    result = tiny_run(DemoPrior(model, "a red cube", cfg=1.5))
    assert result.abs().max() > 0.01
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_phi_is_no_second_copy_of_the_model():
    model = tiny_model()
    from dreamflow_core.lora import LoRA

    adapter = LoRA(model, 2, torch.Generator())
    assert sum(p.numel() for p in adapter.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_hooks_are_gone_after_an_error():
    model = tiny_model()

    def fail(progress):
        raise RuntimeError("front end")

    with pytest.raises(RuntimeError, match="front end"):
        tiny_run(DemoPrior(model, "a red cube", cfg=1.5), on_progress=fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_seed_decides_everything():
    torch.manual_seed(1)
    first = tiny_run()
    torch.manual_seed(2)
    assert torch.equal(first, tiny_run())
    assert not torch.equal(first, tiny_run(seed=4))


@pytest.mark.parametrize(
    "guidance,phi", [(APFO(), PhiSettings()), (APFO(), PhiSettings(level="random")), (VSD(), None), (SDS(), None)]
)
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resume_is_bit_exact(tmp_path: Path, guidance, phi, stop):
    whole = tiny_run(guidance=guidance, phi=phi)
    path = tmp_path / "state.safetensors"
    done = []
    with pytest.raises(Cancelled, match=f"{stop} of 8"):
        tiny_run(
            guidance=guidance,
            phi=phi,
            on_progress=done.append,
            cancelled=lambda: len(done) == stop,
            checkpoint=Checkpoint(path, {}),
        )
    steps = []
    resumed = tiny_run(
        guidance=guidance,
        phi=phi,
        on_progress=lambda p: steps.append(p.step),
        checkpoint=Checkpoint(path, {}, resume=True),
    )
    assert steps == list(range(stop + 1, 9))
    assert torch.equal(resumed, whole)


def test_resume_refuses_another_job(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    tiny_run(checkpoint=Checkpoint(path, {"prompt": "a red cube", "size": (16, 16)}))
    tiny_run(checkpoint=Checkpoint(path, {"prompt": "a red cube", "size": (16, 16)}, resume=True))
    with pytest.raises(BadFile, match=r"differs in prompt$"):
        tiny_run(checkpoint=Checkpoint(path, {"prompt": "a blue cube"}, resume=True))
    with pytest.raises(BadFile, match=r"differs in seed$"):
        tiny_run(seed=9, checkpoint=Checkpoint(path, {"prompt": "a red cube"}, resume=True))


def test_resume_refuses_a_foreign_file(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"something": 1})
    with pytest.raises(BadFile, match="not a checkpoint"):
        tiny_run(checkpoint=Checkpoint(path, {}, resume=True))


def test_nan_is_named_and_the_last_good_checkpoint_kept(tmp_path: Path):
    class Breaks(DemoPrior):
        calls = 0

        def denoise(self, z_t, sigma, views, *, guided):
            self.calls += guided
            estimate = super().denoise(z_t, sigma, views, guided=guided)
            return estimate * float("nan") if guided and self.calls == 5 else estimate

    path = tmp_path / "state.safetensors"
    with pytest.raises(NotFinite, match=r"^D p is not finite at level 5 of 8 \(sigma 0\.\d+, iteration 5\)"):
        tiny_run(Breaks(tiny_model(), "a red cube", cfg=1.5), checkpoint=Checkpoint(path, {}, every=0))
    state = load_state(path)["loop"]
    assert state["step"] == 4
    assert torch.isfinite(state["scene"]["values"]).all()
    assert torch.equal(tiny_run(checkpoint=Checkpoint(path, {}, resume=True)), tiny_run())


def test_progress_reports():
    reports = []
    tiny_run(iterations=4, on_progress=reports.append)
    assert [(p.step, p.steps, p.level, p.levels) for p in reports] == [(i, 4, i, 4) for i in range(1, 5)]
    assert [p.sigma for p in reports] == pytest.approx(log_uniform(5, 0.1, 4)[:-1].tolist())
    assert {"flow", "phi"} <= set(reports[0].losses)
    assert reports[-1].preview().shape == (2, 3, 16, 16)
    assert 0 <= reports[-1].preview().min() <= reports[-1].preview().max() <= 1
    assert all(p.gradient_norm > 0 for p in reports)
    assert set(reports[-1].seconds) == {"render", "prior", "phi", "optimiser"}


def test_pixel_scene_gets_the_gradient_through_the_encoder():
    """Demo latents are 2 x - 1, so one flow step moves pixels by 2 Delta (chain rule)."""
    prior = DemoPrior(tiny_model(), "a red cube", cfg=1.0)
    moved = []
    for pixels in (False, True):
        start = torch.full((1, 3, 16, 16), 0.25)
        scene = ImageScene(start if pixels else start * 2 - 1, pixels=pixels)
        optimise(scene, prior, Schedule(torch.tensor([2.0, 1.0])), PointAPFO(), seed=0)
        moved.append(scene.values.detach() - (start if pixels else start * 2 - 1))
    torch.testing.assert_close(moved[1], 2 * moved[0])
