"""LightningCLI: the callback from YAML and from flags, printed, saved and read back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_gc import GradientCentralization
from tests.models import Classifier, image_batches

pytest.importorskip("jsonargparse")
from lightning.pytorch.cli import LightningCLI

ADD = "--trainer.callbacks+=lightning_gc.GradientCentralization"


class Model(Classifier):
    """A Classifier without arguments, with an Embedding that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.head = nn.Linear(2, 2)


class Data(LightningDataModule):
    """The usual images."""

    def train_dataloader(self):
        return image_batches(2)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
}


def cli(*args: str, run: bool = False, **kwargs) -> LightningCLI:
    """The CLI on `args` alone, as ``sys.argv`` would hold them."""
    return LightningCLI(
        Model, Data, args=list(args), run=run, trainer_defaults=QUIET, seed_everything_default=0, **kwargs
    )


def callback_of(made: LightningCLI) -> GradientCentralization:
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, GradientCentralization))
    return callback


def yaml_file(init_args, name: str = "config.yaml") -> str:
    entry = {"class_path": "lightning_gc.GradientCentralization", "init_args": init_args}
    Path(name).write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    return f"--config={name}"


CASES = [
    # in YAML, as flags, the constructor call
    ({}, [], GradientCentralization()),
    ({"exclude": "head"}, ["exclude=head"], GradientCentralization(exclude="head")),
    ({"exclude": "head.*"}, ["exclude=head.*"], GradientCentralization(exclude="head.*")),
    ({"exclude": "*.weight"}, ["exclude=*.weight"], GradientCentralization(exclude="*.weight")),
    ({"exclude": "net.[03]"}, ["exclude=net.[03]"], GradientCentralization(exclude="net.[03]")),
    ({"include": "torch.nn.Linear"}, ["include=torch.nn.Linear"], GradientCentralization(include=nn.Linear)),
    ({"include": ["head", "net"]}, ["include=[head, net]"], GradientCentralization(include=["head", "net"])),
    (
        {"exclude": ["torch.nn.Embedding", "head.*"]},
        ['exclude=[torch.nn.Embedding,"head.*"]'],
        GradientCentralization(exclude=[nn.Embedding, "head.*"]),
    ),
    (
        {"exclude": ["torch.nn.Embedding", "torch.nn.LSTM"]},
        ["exclude+=torch.nn.Embedding", "exclude+=torch.nn.LSTM"],
        GradientCentralization(exclude=[nn.Embedding, nn.LSTM]),
    ),
    (
        {"fan_in_dims": {"*.down_proj": 2, "net.0.weight": [1, 2, 3]}},
        ['fan_in_dims={"*.down_proj": 2, "net.0.weight": [1, 2, 3]}'],
        GradientCentralization(fan_in_dims={"*.down_proj": 2, "net.0.weight": [1, 2, 3]}),
    ),
    ({"fan_in_dims": {"proj": -1}}, ["fan_in_dims.proj=-1"], GradientCentralization(fan_in_dims={"proj": -1})),
    ({"target": "update"}, ["target=update"], GradientCentralization(target="update")),
    (
        {"target": "clipped_gradient"},
        ["target=clipped_gradient"],
        GradientCentralization(target="clipped_gradient"),
    ),
    ({"log_means": "per_parameter"}, ["log_means=per_parameter"], GradientCentralization(log_means="per_parameter")),
    ({"log_means": "off"}, ["log_means=off"], GradientCentralization(log_means="off")),
    ({"log_prefix": "centred"}, ["log_prefix=centred"], GradientCentralization(log_prefix="centred")),
    (
        {
            "include": ["torch.nn.Conv2d", "net.6"],
            "exclude": "net.0",
            "target": "gradient",
            "fan_in_dims": {"net.6.weight": 0},
            "log_means": "off",
            "log_prefix": "g",
        },
        [
            "include=[torch.nn.Conv2d, net.6]",
            "exclude=net.0",
            "target=gradient",
            "fan_in_dims={net.6.weight: 0}",
            "log_means=off",
            "log_prefix=g",
        ],
        GradientCentralization(
            include=[nn.Conv2d, "net.6"],
            exclude="net.0",
            fan_in_dims={"net.6.weight": 0},
            log_means="off",
            log_prefix="g",
        ),
    ),
]


@pytest.mark.parametrize(("init_args", "flags", "wanted"), CASES)
def test_yaml_and_flags_give_the_callback_that_python_does(init_args, flags, wanted, capsys):
    from_yaml = cli(yaml_file(init_args))
    arguments = [ADD, *(f"--trainer.callbacks.{flag}" for flag in flags)]
    for made in (from_yaml, cli(*arguments)):
        callback = callback_of(made)
        assert repr(callback) == repr(wanted)
        assert callback._settings == wanted._settings


@pytest.mark.parametrize(("flags", "wanted"), [case[1:] for case in CASES if len(case[0]) != 1 or "[" in str(case[0])])
def test_the_printed_config_gives_the_same_callback(flags, wanted, capsys):
    arguments = [ADD, *(f"--trainer.callbacks.{flag}" for flag in flags)]
    with pytest.raises(SystemExit) as stop:
        cli(*arguments, "--print_config")
    assert stop.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert repr(callback_of(cli("--config=printed.yaml"))) == repr(wanted)


def test_a_single_callback_without_a_list():
    entry = {"class_path": "lightning_gc.GradientCentralization", "init_args": {"exclude": "head"}}
    Path("config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": entry}}))
    assert repr(callback_of(cli("--config=config.yaml"))) == "GradientCentralization(exclude='head')"


@pytest.mark.parametrize("written", ["off", "'off'", '"off"'])
def test_off_is_no_boolean_although_yaml_has_it_so(written):
    Path("config.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: lightning_gc.GradientCentralization\n"
        f"    init_args:\n      log_means: {written}\n"
    )
    assert repr(callback_of(cli("--config=config.yaml"))) == "GradientCentralization(log_means='off')"


def test_a_number_is_the_name_of_a_module():
    made = cli(ADD, "--trainer.callbacks.exclude=3")
    assert repr(callback_of(made)) == "GradientCentralization(exclude='3')"


def test_flags_change_what_the_file_says():
    config = yaml_file({"exclude": "head", "log_prefix": "g"})
    made = cli(config, "--trainer.callbacks.exclude=torch.nn.Embedding")
    assert repr(callback_of(made)) == "GradientCentralization(exclude=torch.nn.Embedding, log_prefix='g')"


def test_a_fit_saves_a_config_that_gives_the_same_callback():
    arguments = [ADD, '--trainer.callbacks.exclude=[torch.nn.Embedding,"head.*"]']
    arguments += ["--trainer.callbacks.log_means=per_parameter", "--trainer.logger=CSVLogger"]
    arguments += ["--trainer.logger.save_dir=.", "--trainer.log_every_n_steps=1"]
    made = cli("fit", *arguments, run=True)
    (saved,) = Path().rglob("config.yaml")
    again = cli(f"--config={_without_ckpt_path(saved)}")
    assert repr(callback_of(again)) == repr(callback_of(made))
    assert repr(callback_of(made)) == (
        "GradientCentralization(exclude=[torch.nn.Embedding, 'head.*'], log_means='per_parameter')"
    )
    assert "gc/mean_pre/net.6.weight" in made.trainer.callback_metrics
    assert "gc/mean_pre/head.weight" not in made.trainer.callback_metrics


def _without_ckpt_path(saved: Path) -> Path:
    """The saved config of ``fit`` as one for a CLI without subcommands."""
    config = yaml.safe_load(saved.read_text())
    for argument in ("ckpt_path", "weights_only"):
        config.pop(argument, None)
    saved.write_text(yaml.safe_dump(config))
    return saved


def test_help_explains_every_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        cli("--trainer.callbacks.help=lightning_gc.GradientCentralization")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for argument, explanation in {
        "include": "Module classes and/or name globs of what is centralized",
        "exclude": "`exclude` wins over `include`",
        "target": "before clipping",
        "fan_in_dims": "the dims that one weight vector spans",
        "log_means": "on the steps that the Trainer logs",
        "log_prefix": "The prefix of the logged names",
    }.items():
        assert f"--trainer.callbacks.{argument} " in shown
        assert explanation in shown
    assert "Subtract from the gradient of every weight vector its mean" in shown


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("target=gradients", ["target", "'gradient', 'clipped_gradient', 'update'", "gradients"]),
        ("log_means=all", ["log_means", "'off', 'total', 'per_parameter'", "all"]),
        ("exclude=[[head]]", ["exclude", "head"]),
        ("fan_in_dims=[1]", ["fan_in_dims", "[1]"]),
        ("fan_in_dims.a=x", ["fan_in_dims", "x"]),
        ("excluded=head", ["excluded"]),
    ],
)
def test_a_bad_flag_is_named(flag, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli(ADD, f"--trainer.callbacks.{flag}")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    message = message[message.index("error:") :]
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("init_args", "said"),
    [
        ({"log_prefix": ""}, r"log_prefix=''\): it must be a non-empty string"),
        ({"exclude": ""}, "exclude='' holds an empty string"),
        ({"fan_in_dims": {"a": []}}, r"fan_in_dims\['a'\]=\[\]: allowed are"),
    ],
)
def test_what_only_the_callback_can_refuse(init_args, said):
    # Newer versions of jsonargparse make a ValueError of it, with its message.
    with pytest.raises((MisconfigurationException, ValueError), match=said):
        cli(yaml_file(init_args))


def test_a_class_that_cannot_be_imported_is_a_name_that_matches_nothing():
    made = cli(yaml_file({"exclude": "torch.nn.Embeding"}), save_config_callback=None)
    said = (
        r"'torch.nn.Embeding' matches no parameter.* cannot be imported. The closest class there is torch.nn.Embedding"
    )
    with pytest.raises(MisconfigurationException, match=said):
        made.trainer.fit(made.model, made.datamodule)


def test_defaults_of_the_cli_in_python():
    made = LightningCLI(
        Model,
        Data,
        args=[],
        run=False,
        trainer_defaults={**QUIET, "callbacks": [GradientCentralization(exclude=[nn.Embedding])]},
        seed_everything_default=0,
    )
    assert repr(callback_of(made)) == "GradientCentralization(exclude=[torch.nn.Embedding])"
    assert not os.listdir()
