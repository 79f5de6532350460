"""Which optional accelerators work here: the one policy for all of them.

A backend is asked once per process and device, by really using it on something tiny, and the answer
is kept. If it cannot be used, one log message says why and the plain torch code serves for the rest
of the process; nothing fails later, inside a render. Neither library is imported before it is needed.

- Warp (warp-lang): its wheel may see only the CPU although torch sees a GPU (it wants a recent
  driver), so its own device list decides.
- nerfacc's CUDA extension compiles itself with nvcc at its first use and can fail there in many ways.
  What of nerfacc needs no extension is a plain dependency and is not probed.
"""

from __future__ import annotations

import functools
import logging

import torch

from ..quiet import quiet_warp, without_driver_warning

_log = logging.getLogger(__name__)


def warp_works(device: torch.device) -> bool:
    """Whether Warp kernels can be compiled and launched on `device`."""
    return _warp_works(_with_index(device))


def nerfacc_cuda_works(device: torch.device) -> bool:
    """Whether nerfacc's CUDA functions can be used on `device`; the first call may compile for minutes."""
    return device.type == "cuda" and _nerfacc_cuda_works(_with_index(device))


def _with_index(device: torch.device) -> str:
    """A device's name as Warp spells it: "cpu", "cuda:0"."""
    if device.type == "cuda" and device.index is None:
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


@functools.cache
def _warp_works(device: str) -> bool:
    try:
        reason = _probe_warp(device)
    except Exception as error:  # a compiler, a driver or a read-only cache folder can fail in any way
        reason = f"{type(error).__name__}: {error}"
    if reason:
        _log.warning("Warp is not used on %s (%s); plain torch is used, which is slower.", device, reason)
    return not reason


def _probe_warp(device: str) -> str:
    """Compile and launch a kernel; returns why Warp cannot be used, or "" if it can."""
    try:
        import warp as wp
    except ImportError:
        return "the package warp-lang is not installed"
    with quiet_warp(), without_driver_warning():
        wp.init()
    devices = [str(known) for known in wp.get_devices()]
    if device not in devices:
        return f"Warp sees only {', '.join(devices)}; a newer driver may help"

    @wp.kernel(enable_backward=False, module="dreamflow_probe")
    def probe(numbers: wp.array(dtype=float)):  # type: ignore[valid-type]
        numbers[wp.tid()] = 2.0 * numbers[wp.tid()]

    numbers = torch.ones(2, device=device)
    if numbers.is_cuda:
        # Warp launches on a stream of its own here.
        torch.cuda.synchronize(numbers.device)
    with quiet_warp():
        wp.launch(probe, dim=len(numbers), inputs=[wp.from_torch(numbers)], device=device)
    wp.synchronize_device(device)
    return "" if numbers.tolist() == [2.0, 2.0] else "a small kernel gave wrong numbers"


@functools.cache
def _nerfacc_cuda_works(device: str) -> bool:
    try:
        import nerfacc

        rays = torch.zeros(2, dtype=torch.long, device=device)
        nerfacc.pack_info(rays, 1)
        nerfacc.exclusive_sum(torch.ones(2, device=device), nerfacc.pack_info(rays, 1))
    except Exception as error:  # four exception types seen so far: OSError, IndexError, ImportError, AttributeError
        _log.warning(
            "nerfacc's CUDA extension is not used on %s (%s: %s); rays are marched in plain torch. A CUDA "
            "toolkit that fits torch lets nerfacc build it.",
            device,
            type(error).__name__,
            error,
        )
        return False
    return True
