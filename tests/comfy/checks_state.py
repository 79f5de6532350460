"""Nothing of a run stays behind, however it ends."""

from __future__ import annotations

import gc

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import psutil
import tiny
import torch
from helpers import SIZE, optimise_image, prior, same, step
from pack.dreamflow_core.apfo import Cancelled

from nodes import ControlNetApplyAdvanced


def check_a_run_leaves_no_trace_however_it_ends():
    plain = tiny.model("sd1")
    model, _ = comfy.sd.load_lora_for_models(plain, None, tiny.lora(), 0.8, 0)
    vae, control = tiny.vae(), tiny.control_net()
    texts = ControlNetApplyAdvanced().apply_controlnet(
        *tiny.texts("sd1"), control, torch.rand(1, 64, 64, 3), 0.7, 0.0, 1.0
    )

    def fingerprint() -> list[torch.Tensor]:
        images = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
        return [
            step(model, *texts, 7.5),
            step(plain, *texts, 7.5),
            vae.encode(images),
            *(p.detach().clone() for m in (plain.model, vae.first_stage_model) for p in m.parameters()),
        ]

    before = fingerprint()
    applied = texts[0][0][1]["control"]
    kept = dict(vars(applied))
    flags = [p.requires_grad for p in vae.first_stage_model.parameters()]
    for end in (None, ValueError, Cancelled, mm.InterruptProcessingException, KeyboardInterrupt):

        def at_step_two(progress, end=end) -> None:
            if end is not None and progress.step == 2:
                raise end

        try:
            optimise_image(prior(model, *texts, vae=vae), on_progress=at_step_two)
        except BaseException as error:
            assert type(error) is end, error
        else:
            assert end is None
        for module in (plain.model, vae.first_stage_model, control.control_model):
            for layer in module.modules():
                assert "forward" not in vars(layer) and not layer._forward_hooks, type(layer)
        for a, b in zip(fingerprint(), before):
            same(a, b)
        assert vars(applied) == kept
        assert [p.requires_grad for p in vae.first_stage_model.parameters()] == flags
        assert all(p.grad is None for p in plain.model.parameters())
        assert comfy.ops.run_every_op.__name__ == "run_every_op" and not mm.in_training


def check_an_error_inside_the_network_leaves_no_trace():
    model, texts = tiny.model("sd1"), tiny.texts("sd1")
    before = step(model, *texts, 7.5)
    for grad in (False, True):
        failing = model.clone()
        calls = []

        def fail(apply, args, calls=calls, grad=grad):
            calls.append(torch.is_grad_enabled())
            if torch.is_grad_enabled() == grad and len(calls) > 3:
                raise ZeroDivisionError
            return apply(args["input"], args["timestep"], **args["c"])

        failing.set_model_unet_function_wrapper(fail)
        try:
            optimise_image(prior(failing, *texts))
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError("the network's error was swallowed")
        same(step(model, *texts, 7.5), before)
        assert not any("forward" in vars(layer) for layer in model.model.modules())
        assert not mm.in_training


def check_an_interrupt_waits_for_the_end_of_the_iteration():
    model, texts = tiny.model("sd1"), tiny.texts("sd1")
    done = []

    def interrupt(progress) -> None:
        done.append(progress.step)
        if progress.step == 2:
            mm.interrupt_current_processing()

    try:
        optimise_image(prior(model, *texts), on_progress=interrupt, cancelled=mm.processing_interrupted)
    except Cancelled:
        pass
    else:
        raise AssertionError("the run went on")
    finally:
        mm.interrupt_current_processing(False)
    assert done == [1, 2]


def check_memory_returns_over_many_runs():
    model, vae, texts = tiny.model("sd1"), tiny.vae(), tiny.texts("sd1")
    made = prior(model, *texts, vae=vae)

    def run(times: int) -> tuple[int, int]:
        """Elements of the tensors that are alive, and resident bytes, after so many more runs."""
        for _ in range(times):
            optimise_image(made, levels=(5.0, 1.0), iterations=1)
        gc.collect()
        alive = sum(o.numel() for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
        return alive, psutil.Process().memory_info().rss

    (early, resident), (late, resident_late) = run(4), run(16)
    assert late <= early, (early, late)
    assert resident_late < resident + (32 << 20), (resident, resident_late)
