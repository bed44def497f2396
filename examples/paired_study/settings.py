"""What is trained: every setting by its name, and the arms that it is trained in. All were named before any was run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ImageSetting:
    """A small CNN on Fashion-MNIST; the arms differ in nothing but the callback."""

    images: int = 5_000
    epochs: int = 6
    optimizer: str = "sgd"  # with momentum 0.9, or "adamw"; both with a cosine schedule down to zero
    lr: float = 0.05
    weight_decay: float = 5e-4
    norm: str = "batch"  # "batch", "group" or "none"
    init_scale: float = 1.0  # what the default initial weights are multiplied by


@dataclass(frozen=True)
class Setting:
    """What is trained on a task that is not images.

    Attributes:
        problem: The data and the network: a name in `problems.PROBLEMS`.
        steps: How many optimizer steps.
        optimizer: "sgd" (momentum 0.9), "adamw" or "lion"; the weight decay goes with it, see `training.OPTIMIZERS`.
        lr: The learning rate, which was chosen without Gradient Centralization: see `study.py --tune`.
        schedule: "constant", "cosine" (down to zero) or "restarts" (cosine, from the top again twice; cycles of 1, 2, 4).
        head_steps: Of a trunk that was trained before: how many steps its new head is trained alone, before `steps`
            steps of everything.
    """

    problem: str
    steps: int
    optimizer: str
    lr: float
    schedule: str = "cosine"
    head_steps: int = 0


IMAGES: dict[str, ImageSetting] = {
    "sgd": ImageSetting(images=10_000),
    "adamw": ImageSetting(images=10_000, optimizer="adamw", lr=2e-3, weight_decay=1e-2),
    "high-lr": ImageSetting(lr=0.2),
    "low-lr": ImageSetting(lr=0.01),
    "small-init": ImageSetting(init_scale=0.3),
    "no-norm": ImageSetting(norm="none"),
    "long": ImageSetting(epochs=20),
    "sgd-groupnorm": ImageSetting(images=10_000, norm="group"),
    "adamw-groupnorm": ImageSetting(images=10_000, norm="group", optimizer="adamw", lr=2e-3, weight_decay=1e-2),
    "middle-lr": ImageSetting(),  # what high-lr, low-lr, small-init, no-norm and long differ from
    "all-images": ImageSetting(images=60_000, epochs=5),
}
LANGUAGE: dict[str, Setting] = {
    "language-sgd": Setting("language", 500, "sgd", 0.03),
    "language-adamw": Setting("language", 500, "adamw", 3e-3),
    "language-adamw-high-lr": Setting("language", 500, "adamw", 1.2e-2),
    "language-lion": Setting("language", 500, "lion", 1e-3),
}
REGRESSION: dict[str, Setting] = {
    "field-sgd": Setting("field", 1500, "sgd", 0.3),
    "field-adamw": Setting("field", 1500, "adamw", 1e-2),
    "field-adamw-restarts": Setting("field", 1500, "adamw", 1e-2, "restarts"),
    "field-lion-constant": Setting("field", 1500, "lion", 1e-3, "constant"),
    "burgers-adamw": Setting("burgers", 500, "adamw", 3e-3),
    "burgers-adamw-restarts": Setting("burgers", 500, "adamw", 3e-3, "restarts"),
    "burgers-lion-restarts": Setting("burgers", 500, "lion", 1e-3, "restarts"),
}
FINE_TUNING: dict[str, Setting] = {
    "digits-head-sgd-constant": Setting("digits", 0, "sgd", 0.01, "constant", head_steps=200),
    "digits-all-adamw": Setting("digits", 200, "adamw", 3e-3, head_steps=200),
    "code-head-adamw-constant": Setting("code", 0, "adamw", 1e-2, "constant", head_steps=200),
    "code-all-adamw": Setting("code", 200, "adamw", 3e-3, head_steps=200),
}
TASKS: dict[str, dict[str, Any]] = {
    "images": IMAGES,
    "language": LANGUAGE,
    "regression": REGRESSION,
    "fine-tuning": FINE_TUNING,
}
SETTINGS: dict[str, Any] = {name: setting for task in TASKS.values() for name, setting in task.items()}

# The callback's arguments; "none" is the run without it. Besides these, each setting has runs named FIRST_STEPS.
Arms = dict[str, dict[str, Any] | None]
FIRST_STEPS = "first-steps"  # with target "gradient", stopped after `norms.STEPS` steps: what is logged until then
IMAGE_ARMS: Arms = {
    "none": None,
    "gradient": {"target": "gradient"},
    "update": {"target": "update"},
    "convolutions": {"target": "gradient", "include": [nn.Conv2d]},
    "head": {"target": "gradient", "include": [nn.Linear]},
}
ARMS: Arms = {
    "none": None,
    "gradient": {"target": "gradient"},
    "update": {"target": "update"},
    "trunk": {"target": "gradient", "exclude": ["head"]},
}
# Named when the results of the others were there, to see where the harm in `field` comes from; corrected by itself.
ARMS_AFTERWARDS: Arms = {"wide": {"target": "gradient", "exclude": ["trunk.0"]}}  # all but the layer of fan-in 2


def arms_of(name: str) -> Arms:
    """The arms that a setting is trained in."""
    setting = SETTINGS[name]
    if isinstance(setting, ImageSetting):
        return IMAGE_ARMS
    if not setting.steps:  # the head is all that is trained: without it nothing would be centralized
        return {arm: arguments for arm, arguments in ARMS.items() if arm != "trunk"}
    return {**ARMS, **ARMS_AFTERWARDS} if setting.problem == "field" else ARMS
