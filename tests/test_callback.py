"""The callback's arguments, its errors, its copies, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import weakref
from collections import OrderedDict
from types import MappingProxyType

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from torch import nn

import lightning_gc
from lightning_gc import GradientCentralization
from tests.models import Classifier, fit, image_batches

BAD_ARGUMENTS = [
    # argument, value, what the message says of it
    ({"include": 3}, ["include=3", "torch.nn.Module classes and strings"]),
    ({"include": None}, ["include=None", "torch.nn.Module classes and strings"]),
    ({"exclude": [3.0]}, ["exclude=[3.0]", "holds 3.0", "torch.nn.Module classes and strings"]),
    ({"exclude": int}, ["exclude=<class 'int'>", "torch.nn.Module classes"]),
    ({"exclude": nn.Linear(1, 1)}, ["exclude holds a module, a Linear", "Pass its class"]),
    ({"exclude": [nn.Sequential(nn.Linear(1, 1))]}, ["a Sequential", "Pass its class"]),
    ({"exclude": ["head", ["nested"]]}, ["holds ['nested']"]),
    ({"exclude": {"head": 1}}, ["exclude={'head': 1}", "mapping", "Pass a list"]),
    ({"exclude": b"head"}, ["exclude=", "torch.nn.Module classes and strings"]),
    ({"include": ""}, ["include=''", "empty string", "Remove it"]),
    ({"include": ["head", ""]}, ["include=['head', '']", "empty string", "Remove it"]),
    ({"target": "gradients"}, ["target='gradients'", "'gradient', 'clipped_gradient', 'update'"]),
    ({"target": None}, ["target=None", "'gradient', 'clipped_gradient', 'update'"]),
    ({"target": ["gradient"]}, ["target=['gradient']", "'gradient', 'clipped_gradient', 'update'"]),
    ({"log_means": 0}, ["log_means=0", "'off' (or False), 'total', 'per_parameter'"]),
    ({"log_means": True}, ["log_means=True", "'off' (or False), 'total', 'per_parameter'"]),
    ({"log_means": "all"}, ["log_means='all'", "'off' (or False), 'total', 'per_parameter'"]),
    ({"log_prefix": ""}, ["log_prefix=''", "non-empty string"]),
    ({"log_prefix": 1}, ["log_prefix=1", "non-empty string"]),
    ({"fan_in_dims": 1}, ["fan_in_dims=1", "must map name globs to dims"]),
    ({"fan_in_dims": ["a"]}, ["fan_in_dims=['a']", "must map name globs to dims"]),
    ({"fan_in_dims": "a"}, ["fan_in_dims='a'", "must map name globs to dims"]),
    ({"fan_in_dims": {"a": "1"}}, ["fan_in_dims['a']='1'", "an integer or a non-empty sequence of integers"]),
    ({"fan_in_dims": {"a": []}}, ["fan_in_dims['a']=[]", "non-empty"]),
    ({"fan_in_dims": {"a": 1.0}}, ["fan_in_dims['a']=1.0", "integers"]),
    ({"fan_in_dims": {"a": True}}, ["fan_in_dims['a']=True", "integers"]),
    ({"fan_in_dims": {"a": [1, None]}}, ["fan_in_dims['a']=[1, None]", "integers"]),
    ({"fan_in_dims": {1: 1}}, ["fan_in_dims[1]=1", "by name"]),
]

BAD_FOR_THE_MODEL = [
    ({"exclude": "haed"}, ["exclude: the name 'haed' matches no parameter", "'head'"]),
    ({"include": ["net.0", "net.l"]}, ["include: the name 'net.l'", "'net.0'"]),
    ({"exclude": "Net.0"}, ["exclude: the name 'Net.0'", "'net.0'"]),
    ({"include": nn.LSTM}, ["include: the class LSTM", "modules of: BatchNorm2d, Conv2d"]),
    ({"exclude": "torch.nn.Linear"}, ["pass the class torch.nn.Linear itself"]),
    ({"exclude": list("head")}, ["Was the string 'head' split into characters? Pass ['head']"]),
    ({"include": "net.1"}, ["include=('net.1',)", "leave nothing to centralize", "Widen them", "normalisation"]),
    ({"exclude": LightningModule}, ["leave nothing to centralize"]),
    ({"fan_in_dims": {"nte.*": 1}}, ["fan_in_dims: the name 'nte.*' matches no parameter", "'net.0'"]),
    ({"fan_in_dims": {"net.6.weight": 2}}, ["fan_in_dims['net.6.weight']", "(3, 24)", "allowed are -2 to 1"]),
    ({"fan_in_dims": {"net.0.weight": [1, -3]}}, ["fan_in_dims['net.0.weight']", "twice"]),
    ({"fan_in_dims": {"net.6.*": 1}}, ["fan_in_dims['net.6.*'] for 'net.6.bias'", "(3,)", "narrow the glob"]),
]


class WithHead(Classifier):
    """A Classifier that has a module named head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = self.net[6]


@pytest.mark.parametrize(("arguments", "said"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_at_construction(arguments, said):
    with pytest.raises(MisconfigurationException) as error:
        GradientCentralization(**arguments)
    assert str(error.value).startswith("GradientCentralization")
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(("arguments", "said"), BAD_FOR_THE_MODEL)
def test_an_argument_that_does_not_fit_the_model_is_refused_before_a_step(arguments, said):
    class Untrained(WithHead):
        def training_step(self, batch, batch_idx):
            raise AssertionError("the error came too late")

    callback = GradientCentralization(**arguments)
    with pytest.raises(MisconfigurationException) as error:
        fit(Untrained(), callback)
    assert str(error.value).startswith("GradientCentralization")
    for part in said:
        assert part in str(error.value)
    assert callback.selection is None


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ({}, "GradientCentralization()"),
        ({"include": [], "exclude": (), "fan_in_dims": {}}, "GradientCentralization()"),
        ({"exclude": "head"}, "GradientCentralization(exclude='head')"),
        ({"exclude": nn.Embedding}, "GradientCentralization(exclude=torch.nn.Embedding)"),
        ({"include": ["head", nn.Linear]}, "GradientCentralization(include=['head', torch.nn.Linear])"),
        ({"include": (WithHead,)}, "GradientCentralization(include=(tests.test_callback.WithHead,))"),
        (
            {"target": "update", "log_means": "off", "log_prefix": "centred"},
            "GradientCentralization(target='update', log_means='off', log_prefix='centred')",
        ),
        ({"log_means": False}, "GradientCentralization(log_means='off')"),
        ({"fan_in_dims": {"a*": 1, "b": [0, 2]}}, "GradientCentralization(fan_in_dims={'a*': 1, 'b': [0, 2]})"),
        ({"fan_in_dims": MappingProxyType({"a": (1,)})}, "GradientCentralization(fan_in_dims={'a': (1,)})"),
        ({"fan_in_dims": OrderedDict(a=1)}, "GradientCentralization(fan_in_dims={'a': 1})"),
        ({"include": (name for name in ["a", "b"])}, "GradientCentralization(include=['a', 'b'])"),
    ],
)
def test_repr_is_the_constructor_call(arguments, source):
    callback = GradientCentralization(**arguments)
    assert repr(callback) == source
    import tests.test_callback

    names = {"GradientCentralization": GradientCentralization, "torch": torch, "tests": tests}
    again = eval(source, names)
    assert repr(again) == source
    assert again._settings == callback._settings


def test_the_callback_does_not_change_with_what_it_was_given():
    exclude, dims = ["net.0"], {"net.3.weight": 1}
    callback = GradientCentralization(exclude=exclude, fan_in_dims=dims)
    source = repr(callback)
    exclude.append("net.3")
    dims.clear()
    assert repr(callback) == source


def test_a_subclass_shows_its_own_name():
    class Mine(GradientCentralization):
        pass

    assert repr(Mine(exclude="a")) == "Mine(exclude='a')"


def test_no_attribute_is_overwritten_by_lightning():
    """Lightning sets `log` and `log_dict` on every callback."""
    assert not {"log", "log_dict"} & {*vars(GradientCentralization()), *dir(GradientCentralization)}


def test_there_is_no_state_to_save():
    assert GradientCentralization().state_dict() == {}
    assert GradientCentralization.state_dict is Callback.state_dict


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_take_neither_model_nor_optimizers_along(duplicate):
    copies = []

    class Duplicate(Callback):
        def on_train_batch_end(self, trainer, *_):
            copies.append(duplicate(callback))

    callback = GradientCentralization(exclude=[nn.Linear], fan_in_dims={"net.0.weight": [1, 2, 3]})
    fit(Classifier(), callback, Duplicate(), max_steps=1)
    copies.append(duplicate(callback))
    for made in copies:
        assert repr(made) == repr(callback)
        assert made._settings == callback._settings
        assert made.selection is None
        assert not {"log", "log_dict"} & vars(made).keys()
        assert len(pickle.dumps(made)) < 1000
    module = Classifier()
    fit(module, copies[0], max_steps=1)
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7
    assert module.net[6].weight.grad.mean(1).abs().max() > 1e-4


class Interrupting(Classifier):
    """Raises in its second training step."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("in the middle")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        self.__dict__["used"] = super().configure_optimizers()
        return self.used


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
@pytest.mark.parametrize("steps", [1, 2])
def test_hooks_are_gone_after_fit_and_after_an_exception(target, steps):
    hooked = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            (optimizer,) = trainer.optimizers
            hooked.append(len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks))

    module, callback = Interrupting(), GradientCentralization(target=target)
    if steps == 1:
        fit(module, callback, Look(), max_steps=1)
    else:
        with pytest.raises(RuntimeError, match="in the middle"):
            fit(module, callback, Look())
    assert hooked[0] >= 1
    assert not module.used._optimizer_step_pre_hooks
    assert not module.used._optimizer_step_post_hooks
    assert len(callback.selection) == 8
    assert all(entry.parameter is None for entry in callback.selection)


def test_hooks_are_gone_when_one_optimizer_cannot_be_hooked():
    class Bare:
        """As much of an optimizer as Lightning asks for."""

        def __init__(self, params):
            self.param_groups = [{"params": list(params), "lr": 0.1}]
            self.defaults, self.state = {}, {}

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def zero_grad(self, set_to_none=True):
            pass

        def step(self, closure=None):
            closure()

    class Two(Interrupting):
        def configure_optimizers(self):
            self.automatic_optimization = False
            return [super().configure_optimizers(), Bare(self.parameters())]

    module = Two()
    with pytest.raises(MisconfigurationException, match=r"step hooks.*Bare does not have. Use target='gradient'"):
        fit(module, GradientCentralization(target="update"))
    assert not module.used._optimizer_step_pre_hooks
    assert not module.used._optimizer_step_post_hooks


def test_selection_is_there_during_fit_and_after_it():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(callback.selection)

    callback = GradientCentralization(exclude="net.6")
    assert callback.selection is None
    fit(Classifier(), callback, Look(), max_steps=1)
    (selection,) = seen
    assert all(isinstance(entry.parameter, nn.Parameter) for entry in selection)
    # After fit, where a notebook asks for it: the same, without what keeps the model alive.
    kept = callback.selection
    assert str(kept) == str(selection)
    assert [(e.name, e.shape, e.layout, e.reason) for e in kept] == [
        (e.name, e.shape, e.layout, e.reason) for e in selection
    ]
    assert all(entry.parameter is None for entry in kept)
    assert repr(kept[0]) == repr(selection[0])[:-1] + ", parameter=None)"
    assert isinstance(selection, lightning_gc.Selection)
    assert [entry.name for entry in selection.centralized] == ["net.0.weight", "net.3.weight"]
    assert {e.name: e.reason for e in selection}["net.6.weight"] == "excluded by 'net.6'"


def test_parameters_in_no_optimizer_are_shown_as_such():
    class HeadAlone(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[6].parameters(), lr=0.1)

    seen = {}

    class Look(Callback):
        def on_train_end(self, *_):
            seen.update({entry.name: entry for entry in callback.selection})

    module, callback = HeadAlone(), GradientCentralization()
    fit(module, callback, Look(), max_steps=1)
    assert seen["net.0.weight"].reason == "in no optimizer"
    assert not seen["net.0.weight"].centralized
    assert seen["net.6.weight"].centralized
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() > 1e-4


def test_the_model_can_be_freed_after_fit():
    module, callback = Classifier(), GradientCentralization()
    trainer = fit(module, callback, max_steps=1)
    weight = weakref.ref(module.net[0].weight)
    assert callback._fit is None
    del trainer, module
    vars(callback).pop("log"), vars(callback).pop("log_dict")  # methods of the model, which Lightning leaves
    gc.collect()
    assert weight() is None
    assert len(callback.selection.centralized) == 3


def test_a_fit_that_is_refused_leaves_no_selection_of_the_one_before():
    callback = GradientCentralization(fan_in_dims={"net.0.weight": (1, 2, 3)})
    fit(Classifier(), callback, max_steps=1)
    with pytest.raises(MisconfigurationException):
        fit(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), callback)
    assert callback.selection is None


def test_fabric_which_would_never_call_it_again_is_refused():
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[GradientCentralization()])
    module = nn.Linear(2, 2)
    with pytest.raises(
        MisconfigurationException, match=r"Fabric calls no callback before.*attach\(optimizer, module\)"
    ):
        fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_one_line_is_printed_when_fit_starts(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Classifier(), GradientCentralization(exclude="net.6"), max_steps=3)
    lines = [r.getMessage() for r in caplog.records if "GradientCentralization" in r.getMessage()]
    assert lines == [
        "GradientCentralization(exclude='net.6'): 2 of 8 parameters are centralized: 10 weight vectors, "
        "252 of 345 elements (73.0%)"
    ]


def test_the_line_names_a_class_that_the_model_does_not_have(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Classifier(), GradientCentralization(exclude=nn.Embedding), max_steps=1)
    (line,) = [r.getMessage() for r in caplog.records if "GradientCentralization" in r.getMessage()]
    assert line.endswith("(93.9%); no parameter stands in: Embedding (exclude)")


def test_one_callback_can_train_twice_and_test_between():
    class Checked(Classifier):
        def test_step(self, batch, batch_idx):
            pass

    callback, module = GradientCentralization(), Checked()
    trainer = fit(module, callback, max_steps=1)
    trainer.test(module, image_batches(1), verbose=False)
    second = Classifier()
    fit(second, callback, max_steps=1)
    assert second.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7


class Delegating(Callback):
    """Forwards hooks to a callback that the Trainer does not know of."""

    def __init__(self, inner, ends=True):
        self.inner, self.ends = inner, ends

    def setup(self, *args, **kwargs):
        self.inner.setup(*args, **kwargs)

    def on_fit_start(self, *args):
        self.inner.on_fit_start(*args)

    def on_after_backward(self, *args):
        self.inner.on_after_backward(*args)

    def on_before_optimizer_step(self, *args):
        self.inner.on_before_optimizer_step(*args)

    def teardown(self, *args, **kwargs):
        if self.ends:
            self.inner.teardown(*args, **kwargs)


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_another_callback_can_delegate_to_it(target):
    kwargs = {"log_means": "off", "target": target}
    delegated, listed, plain = Classifier(), Classifier(), Classifier()
    fit(delegated, Delegating(GradientCentralization(**kwargs)))
    fit(listed, GradientCentralization(**kwargs))
    fit(plain)
    for name, weight in listed.state_dict().items():
        assert torch.equal(delegated.state_dict()[name], weight)
    assert not torch.equal(delegated.net[0].weight, plain.net[0].weight)


def test_a_new_fit_ends_one_that_was_not_torn_down():
    first, callback = Interrupting(), GradientCentralization(target="update")
    fit(first, Delegating(callback, ends=False), max_steps=1)
    assert first.used._optimizer_step_post_hooks
    fit(Classifier(), callback, max_steps=1)
    assert not first.used._optimizer_step_pre_hooks
    assert not first.used._optimizer_step_post_hooks
