"""The one optimisation loop: DreamFlow's algorithm (arXiv 2403.14966), and VSD and SDS by strategy.

for each level sigma_i of the schedule, `iterations` times:
    render the scene from sampled views, encode:          z = E(g(theta, c))
    noise:                                                z_t = z + sigma_i eps
    Delta = (sigma_i - sigma_{i+1}) / sigma_i (D_p(z_t) - D_phi(z_t))
    step theta along Delta; one step of denoising score matching for phi on z
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .guidance import Guidance
from .job import differences
from .lora import LoRA
from .prior import Prior, Session
from .scenes.scene import Scene
from .schedule import Schedule
from .settings.stages import PhiSettings
from .state import BadFile, load_state, make_generator, reading, save_state


class Cancelled(Exception):
    """The caller asked the loop to stop; what was done is in the checkpoint, if there is one."""


class NotFinite(ArithmeticError):
    """A quantity became NaN or infinite; the message says which and at which level."""


@dataclass(frozen=True)
class Progress:
    """What one finished iteration reports.

    Attributes:
        step, steps: iterations done, and in all.
        level, levels: the schedule's level it belonged to, from 1, and how many there are.
        sigma: noise level it used.
        losses: "flow" is the mean square of Delta; "phi" phi's denoising loss; the scene adds its own.
        gradient_norm: of the scene's parameters.
        seconds: time so far by part: render, prior, phi, optimiser.
        preview: makes the current render, (B, 3, H, W) in [0, 1]; costs a decode for latent scenes.
    """

    step: int
    steps: int
    level: int
    levels: int
    sigma: float
    losses: dict[str, float]
    gradient_norm: float
    seconds: dict[str, float]
    preview: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves what it needs to continue.

    Attributes:
        path: safetensors file.
        job: what the run is (prompt, model...), JSON values; a checkpoint of another job is refused. Files stand
            in it as `job.of_file` makes them.
        every: seconds between saves; a run also saves when it is cancelled and when it ends. A save that fails is
            a warning: the run goes on, and the last good state stays.
        resume: continue from `path` if it is there.

    Raises:
        ValueError: `every` is negative or NaN.
    """

    path: Path
    job: dict[str, Any]
    every: float = 60.0
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"the time between saved states is {self.every:g} seconds; it must be 0 or more")


def optimise(
    scene: Scene,
    prior: Prior,
    schedule: Schedule,
    guidance: Guidance,
    phi_settings: PhiSettings | None = None,
    *,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Move `scene` along the flow, in place.

    Args:
        scene: what is optimised.
        prior: whose distribution the renders should come to follow.
        schedule, guidance: the levels, and how a level is used (`APFO`, `VSD`, `SDS`).
        phi_settings: how the scene's denoiser learns; unused by SDS.
        seed: of every random number drawn here.
        on_progress: called after every iteration; what it raises ends the run.
        cancelled: asked before every iteration.
        checkpoint: where to save and whether to continue. On the CPU a run that was stopped anywhere
            and continued ends bit-equal to one that was not.

    Raises:
        Cancelled: `cancelled` returned True.
        NotFinite: a latent, an estimate, a gradient or a loss is NaN or infinite.
        BadFile: the checkpoint is broken or belongs to another job.
    """
    settings = phi_settings or PhiSettings()
    job = {
        "seed": seed,
        "levels": schedule.levels.tolist(),
        "iterations": schedule.iterations,
        "guidance": type(guidance).__name__,
        "phi": asdict(settings) if guidance.trains_phi else None,
    }

    def body(session: Session) -> None:
        loop = _Loop(scene, session, schedule, guidance, settings, seed)
        store = _Store(loop, checkpoint, job) if checkpoint else None
        with loop.attached():
            while loop.step < len(schedule):
                if cancelled is not None and cancelled():
                    if store:
                        store.save()
                    raise Cancelled(f"stopped after {loop.step} of {len(schedule)} iterations")
                progress = loop.iterate()
                if store:
                    store.save_if_due()
                if on_progress is not None:
                    on_progress(progress)
            if store:
                store.save()

    prior.run(body, scene.view)


class Phi:
    """The scene's denoiser: the prior's network with a LoRA, and its optimiser."""

    def __init__(self, session: Session, settings: PhiSettings, seed: int):
        self.session, self.settings = session, settings
        self.lora = LoRA(session.network, settings.rank, make_generator(seed, "phi")).to(session.device)
        self.optimiser = torch.optim.Adam(self.lora.parameters(), lr=settings.learning_rate)
        # Half-precision gradients of a small LoRA underflow unless the loss is scaled. Weights of fewer bits
        # may be computed with in half precision.
        short = any(p.dtype not in (torch.float32, torch.bfloat16) for p in session.network.parameters())
        self.scaler = torch.amp.GradScaler(session.device.type, enabled=short)

    def denoise(self, z_t: Tensor, sigma: float, views: Any) -> Tensor:
        """D_phi(z_t; sigma), differentiable in phi."""
        with self.lora.on():
            return self.session.denoise(z_t, sigma, views, guided=False)

    def learn(self, denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
        """One step of denoising score matching on D_phi's estimate of z; returns the loss.

        Weighted by (1 + sigma^2) / sigma^2, which makes it the v-prediction loss: of the same size at
        all levels.
        """
        loss = (1 + sigma**2) / sigma**2 * (denoised.float() - z.float()).square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        # On, because a session that is short of memory runs parts of the network again.
        with self.lora.on():
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "lora": self.lora.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lora.load_state_dict(state["lora"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])


@dataclass
class _Stopwatch:
    """Seconds by part. On a GPU work is queued, so times are right only in sum."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("render", "prior", "phi", "optimiser"), 0.0)
    )

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


class _Loop:
    """The loop's state and its body."""

    def __init__(
        self, scene: Scene, session: Session, schedule: Schedule, guidance: Guidance, settings: PhiSettings, seed: int
    ):
        self.scene, self.session, self.schedule, self.guidance = scene, session, schedule, guidance
        self.step = 0
        self.generators = {name: make_generator(seed, name) for name in ("views", "noise", "levels")}
        self.phi = Phi(session, settings, seed) if guidance.trains_phi else None
        self._one_forward = settings.level == "current"
        self.stopwatch = _Stopwatch()

    def attached(self):
        """phi's LoRA hangs on the network inside this context."""
        return self.phi.lora.attached() if self.phi else nullcontext()

    @torch.enable_grad()
    def iterate(self) -> Progress:
        """One iteration, as at the top of this file."""
        scene, session, timed, generators = self.scene, self.session, self.stopwatch, self.generators
        sigma, weight = self.guidance.step(self.schedule, self.step, generators["levels"])
        scene.begin(self.step / len(self.schedule))
        views = scene.sample_views(generators["views"])
        with timed("render"):
            render = scene.render(views)
            z = render.values if render.encoded else session.encode(render.values)
        clean = z.detach()
        z_t = clean + sigma * self._noise(clean)
        with timed("prior"), torch.no_grad():
            d_p = session.denoise(z_t, sigma, views, guided=True)
        with timed("phi"), torch.set_grad_enabled(self._one_forward):
            # SDS takes the scene for its one render, whose denoised estimate is that render.
            d_phi = self.phi.denoise(z_t, sigma, views) if self.phi else clean
            delta = weight * (d_p - d_phi.detach())
        with timed("optimiser"):
            regularisers = scene.regularise(render)
            loss = -(delta * z).sum() + sum(regularisers.values())
            scene.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            gradient_norm = _gradient_norm(scene.optimiser)
        self._check(sigma, z=clean, D_p=d_p, D_phi=d_phi, scene_gradient=gradient_norm)
        with timed("optimiser"):
            scene.optimiser.step()
        losses = {"flow": delta.square().mean(), **regularisers}
        if self.phi:
            with timed("phi"):
                losses["phi"] = self._train(self.phi, d_phi, clean, sigma, views)
            self._check(sigma, phi_loss=losses["phi"])
        self.step += 1
        return Progress(
            step=self.step,
            steps=len(self.schedule),
            level=self.schedule.level(self.step - 1) + 1,
            levels=len(self.schedule.levels) - 1,
            sigma=sigma,
            losses={name: float(value.detach()) for name, value in losses.items()},
            gradient_norm=float(gradient_norm),
            seconds=dict(self.stopwatch.seconds),
            preview=lambda: session.decode(clean) if render.encoded else render.values.detach(),
        )

    def _noise(self, like: Tensor) -> Tensor:
        # Drawn on the CPU, so that a seed means the same numbers on every device.
        return torch.randn(like.shape, generator=self.generators["noise"]).to(like)

    def _train(self, phi: Phi, d_phi: Tensor, clean: Tensor, sigma: float, views: Any) -> Tensor:
        """phi's step of denoising score matching, by the forward pass at hand or one of its own."""
        if not self._one_forward:
            sigma = self._random_sigma()
            d_phi = phi.denoise(clean + sigma * self._noise(clean), sigma, views)
        return phi.learn(d_phi, clean, sigma)

    def _random_sigma(self) -> float:
        positive = self.schedule.levels[self.schedule.levels > 0]
        low, high = positive[-1].log(), positive[0].log()
        return float((low + (high - low) * torch.rand((), generator=self.generators["levels"])).exp())

    def _check(self, sigma: float, **quantities: Tensor) -> None:
        """Raise NotFinite, naming the first quantity that is not finite."""
        for name, value in quantities.items():
            if not torch.isfinite(value).all():
                level = self.schedule.level(self.step) + 1
                raise NotFinite(
                    f"{name.replace('_', ' ')} is not finite at level {level} of {len(self.schedule.levels) - 1}"
                    f" (sigma {sigma:.4g}, iteration {self.step + 1})"
                )

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "scene": self.scene.state_dict(),
            "optimiser": self.scene.optimiser.state_dict(),
            "phi": self.phi.state_dict() if self.phi else None,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "seconds": self.stopwatch.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.scene.load_state_dict(state["scene"])
        self.scene.optimiser.load_state_dict(state["optimiser"])
        if self.phi:
            self.phi.load_state_dict(state["phi"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.stopwatch.seconds.update(state["seconds"])


def _gradient_norm(optimiser: torch.optim.Optimizer) -> Tensor:
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))


class _Store:
    """Saves a loop to its checkpoint, and starts it from there."""

    def __init__(self, loop: _Loop, checkpoint: Checkpoint, job: dict[str, Any]):
        self.loop, self.checkpoint = loop, checkpoint
        # As it will be read back: JSON has no tuples.
        self.job = json.loads(json.dumps({**checkpoint.job, **job}))
        self.saved_at, self.warned = time.monotonic(), False
        if checkpoint.resume and checkpoint.path.exists():
            self._resume()

    def _resume(self) -> None:
        path = self.checkpoint.path
        state = load_state(path)
        if not isinstance(state.get("job"), dict):
            raise BadFile(f"{path} is not a checkpoint of an optimisation")
        if changed := dict.fromkeys(differences(state["job"], self.job)):
            raise BadFile(f"{path} is of another run: it differs in {', '.join(changed)}")
        with reading(path):
            self.loop.load_state_dict(state["loop"])

    def save_if_due(self) -> None:
        if time.monotonic() - self.saved_at >= self.checkpoint.every:
            self.save()

    def save(self) -> None:
        try:
            save_state(self.checkpoint.path, {"job": self.job, "loop": self.loop.state_dict()})
        except OSError as error:
            if not self.warned:
                reason = error.strerror or error
                logging.warning("the run goes on, but %s cannot be written: %s", self.checkpoint.path, reason)
            self.warned = True
        self.saved_at = time.monotonic()
