"""What a tensor is, as far as the equation has to know."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE = frozenset({torch.float32, torch.float64, torch.complex64, torch.complex128})


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that means are accumulated in: float32 at least."""
    if dtype.is_complex:
        return torch.complex64 if dtype.itemsize < 8 else dtype
    return torch.float32 if dtype.itemsize < 4 else dtype


def is_narrow(tensor: Tensor) -> bool:
    """Whether means in the tensor's own type would be too coarse."""
    return tensor.dtype not in _WIDE


def is_dtensor(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, without importing torch.distributed."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_expanded(tensor: Tensor) -> bool:
    """Whether several elements of a dense tensor share one place in memory."""
    if tensor.layout != torch.strided:
        return False
    if tensor.device.type == "xla":  # strides there are those of a tensor that is not; nor does this show all that are
        return tensor.untyped_storage().nbytes() < tensor.nbytes
    if tensor.is_contiguous():
        return False
    reach = 0  # how far the dims of smaller strides reach: the next stride must lead beyond it
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
