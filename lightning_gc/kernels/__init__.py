"""All gradients in one or two launches: a multi-tensor kernel in Triton. Off by default.

It has not been measured on a GPU yet. Set the environment variable ``LIGHTNING_GC_FUSED=1`` to use it, on CUDA
devices with Triton installed. What it does not take goes the plain way, which is its reference.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

VARIABLE = "LIGHTNING_GC_FUSED"


def wanted() -> bool:
    """Whether the user asked for the kernel, and Triton is there.

    Raises:
        ValueError: The variable is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "0")
    if value not in ("0", "1", ""):
        raise ValueError(f"{VARIABLE}={value!r}: allowed are 0 and 1.")
    return value == "1" and find_spec("triton") is not None


__all__ = ["VARIABLE", "wanted"]
