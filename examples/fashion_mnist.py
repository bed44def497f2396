"""Fashion-MNIST (Xiao et al., 2017) as tensors, from the four IDX files that it is published as.

Debian has them: ``apt-get install dataset-fashion-mnist``. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as
    a big-endian 32-bit integer, and then the values.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4]!r}.")
    dims = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", dims, offset=4))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} should hold {shape} values, but has {values.size}: it is damaged.")
    return torch.from_numpy(values.reshape(shape).copy())


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images of a split, ``(N, 1, 28, 28)`` normalised floats, and their labels, ``(N,)`` integers.

    Args:
        folder: Where the IDX files are, gzipped or not.
        split: ``"train"`` (60,000) or ``"t10k"`` (10,000, for testing).
    """
    images = read_idx(_find(folder, f"{split}-images-idx3-ubyte")).unsqueeze(1)
    labels = read_idx(_find(folder, f"{split}-labels-idx1-ubyte")).long()
    return images.float().div_(255).sub_(MEAN).div_(STD), labels


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{folder} holds neither {name}.gz nor {name}. Install Debian's package (apt-get install "
        f"dataset-fashion-mnist, which puts it in {DEBIAN_FOLDER}), or name the folder of your copy with --data."
    )
