"""The study's runs on images."""

from __future__ import annotations

import pytest
import torch

from lightning_gc import select
from tests.examples.loading import load
from tests.examples.paired_study.parts import part

fashion_mnist = load("fashion_mnist")
images, norms, settings = part("images"), part("norms"), part("settings")

# The study trains as a user would; Lightning's remarks on that are not under test here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("arm", "taken"),
    [
        ("gradient", ["0.weight", "3.weight", "7.weight", "11.weight"]),
        ("update", ["0.weight", "3.weight", "7.weight", "11.weight"]),
        ("convolutions", ["0.weight", "3.weight", "7.weight"]),
        ("head", ["11.weight"]),
    ],
)
def test_an_arm_centralizes_what_it_says(arm, taken):
    net = images.small_cnn(settings.IMAGES["sgd"])
    assert [e.name for e in select(net, settings.IMAGE_ARMS[arm].get("include", ())).centralized] == taken


def test_arms_of_a_seed_see_the_same_batches_from_the_same_weights(idx_folder, monkeypatch):
    seen = []

    class Recorder(images.Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                seen.append([batch[0].clone(), batch[1].clone()])
                if self.current_epoch == 0:
                    seen[-1] += [p.detach().clone() for p in self.parameters()]
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(images, "Classifier", Recorder)
    tensors = {split: fashion_mnist.load(idx_folder, split) for split in ("train", "t10k")}
    setting = settings.ImageSetting(images=300, epochs=2)
    for arm in ("none", "gradient"):
        images.train(setting, arm, 3, tensors)
    assert len(seen) == 4
    for without, with_ in zip(seen[:2], seen[2:], strict=True):
        assert len(without) == len(with_)
        assert all(map(torch.equal, without, with_))
    assert not torch.equal(seen[0][0], seen[1][0]), "the second epoch has another order"


def test_removed_norm_is_that_of_the_arm(idx_folder):
    tensors = {split: fashion_mnist.load(idx_folder, split) for split in ("train", "t10k")}
    setting = settings.ImageSetting(images=600, epochs=4)  # 20 steps: the Trainer logs once
    assert 0 < images.train(setting, "gradient", 0, tensors)["removed_norm"] < 1
    assert images.train(setting, "none", 0, tensors)["removed_norm"] is None


def test_initial_weights_are_scaled():
    torch.manual_seed(0)
    default = images.small_cnn(settings.ImageSetting())
    torch.manual_seed(0)
    small = images.small_cnn(settings.ImageSetting(init_scale=0.3))
    torch.testing.assert_close(small[0].weight, 0.3 * default[0].weight)
    assert torch.equal(small[1].weight, default[1].weight)


def test_the_first_steps_are_those_of_the_whole_run(idx_folder):
    tensors = {split: fashion_mnist.load(idx_folder, split) for split in ("train", "t10k")}
    setting = settings.ImageSetting(images=600, epochs=30)  # 5 steps an epoch
    found = images.first_norms(setting, 0, tensors)
    assert [*found] == ["total", "net.0.weight", "net.3.weight", "net.7.weight", "net.11.weight"]
    assert all(0 < share < 1 for share in found.values())
    again = images.first_norms(settings.ImageSetting(images=600, epochs=10), 0, tensors)
    assert found != again, "the schedule is that of the whole run"
