"""The equation, written from the paper's formula in float64 and one weight vector at a time.

It shares no code and no tensor operation with the library: numpy, loops, and ``math.fsum``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor


def weight_vector_indices(shape: Sequence[int], dims: Sequence[int], groups: int = 1) -> list[list[tuple[int, ...]]]:
    """The indices of the elements of each weight vector of a tensor of this shape."""
    vectors: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in itertools.product(*map(range, shape)):
        key = tuple(i for d, i in enumerate(index) if d not in dims)
        if groups > 1 and 0 in dims:
            key = (index[0] // (shape[0] // groups), *key)
        vectors.setdefault(key, []).append(index)
    return list(vectors.values())


def means_of(array: np.ndarray, dims: Sequence[int], groups: int = 1) -> list[complex | float]:
    """The mean of each weight vector."""
    found = []
    for vector in weight_vector_indices(array.shape, dims, groups):
        values = [array[i] for i in vector]
        real = math.fsum(float(np.real(v)) for v in values) / len(values)
        imaginary = math.fsum(float(np.imag(v)) for v in values) / len(values)
        found.append(complex(real, imaginary) if np.iscomplexobj(array) else real)
    return found


def centralized(tensor: Tensor, dims: Sequence[int], groups: int = 1) -> np.ndarray:
    """``g - mean(g)`` for each weight vector, in float64 (or complex128)."""
    array = to_numpy(tensor)
    out = array.copy()
    for vector, mean in zip(
        weight_vector_indices(array.shape, dims, groups), means_of(array, dims, groups), strict=True
    ):
        for index in vector:
            out[index] = array[index] - mean
    return out


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of a dense or sparse tensor in float64 (or complex128)."""
    tensor = tensor.detach()
    dense = tensor.to_dense() if tensor.is_sparse else tensor
    return dense.to("cpu").resolve_conj().to(dtype=_wide(dense)).numpy().copy()


def _wide(tensor: Tensor):
    import torch

    return torch.complex128 if tensor.is_complex() else torch.float64
