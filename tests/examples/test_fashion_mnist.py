"""Fashion-MNIST's files are read, and refused, as they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.examples.conftest import write_idx
from tests.examples.loading import load

fashion_mnist = load("fashion_mnist")
study = load("study")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_what_was_written(tmp_path, suffix):
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / f"x{suffix}", array)
    assert torch.equal(fashion_mnist.read_idx(tmp_path / f"x{suffix}").long(), torch.from_numpy(array))


def test_refuses_what_is_no_idx_file(tmp_path):
    (tmp_path / "x").write_bytes(b"PNG, say")
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.read_idx(tmp_path / "x")


def test_refuses_a_file_that_was_cut(tmp_path):
    write_idx(tmp_path / "x", np.zeros((2, 3)))
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        fashion_mnist.read_idx(tmp_path / "x")


def test_says_where_to_get_the_data(tmp_path):
    with pytest.raises(SystemExit, match=r"apt-get install dataset-fashion-mnist.*--data"):
        study.main(["--data", str(tmp_path / "nothing"), "--results", str(tmp_path)])


def test_normalises_the_images(idx_folder):
    images, labels = fashion_mnist.load(idx_folder, "train")
    assert images.shape == (600, 1, 28, 28)
    assert labels.dtype == torch.int64
    assert images.min() == pytest.approx(-fashion_mnist.MEAN / fashion_mnist.STD)
