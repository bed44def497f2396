"""All gradients of a GPU in one or two launches: a multi-tensor kernel in Triton, for CUDA devices.

On an H200 it takes 0.07 to 0.3 of the time of the authors' line, which is launches or memory at its floor
(docs/performance.md). What it does not take goes the plain way, which is its reference.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

VARIABLE = "LIGHTNING_GC_FUSED"
"""Set to 0, everything goes the plain way: for whoever compares, or suspects the kernel."""


def usable(device: torch.device) -> bool:
    """Whether the kernel runs on `device`, and was not turned off.

    Raises:
        ValueError: The variable is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={value!r}: allowed are 0 and 1 (the default).")
    return value == "1" and device.type == "cuda" and find_spec("triton") is not None and _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    """Try it. Triton compiles at run time, and many an image with a GPU has no C compiler, which that needs."""
    from lightning_gc.kernels.launch import Batch, Rows

    tried = torch.tensor([[1.0, 3.0]], device=device)
    try:
        Batch(device, tried.dtype, [Rows(1, 2)])([tried])
        if tried.tolist() == [[-1.0, 1.0]]:
            return True
        reason = f"it made {tried.tolist()} of [[1.0, 3.0]]"
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"GradientCentralization's Triton kernel does not run on {device}, so gradients are centralized by PyTorch's own "
        f"operations: the same numbers, two launches for each parameter. The reason: {reason}",
        stacklevel=2,
    )
    return False
