"""What the tests of the study share."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory) -> Path:
    """A folder in Fashion-MNIST's format: scikit-learn's digits, enlarged to 24x24 and padded to 28x28."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("idx")
    digits = load_digits()
    images = np.pad(np.kron(digits.images * 15, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    for split, part, suffix in (("train", slice(0, 600), ".gz"), ("t10k", slice(600, 900), "")):
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images[part])
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", digits.target[part])
    return folder
