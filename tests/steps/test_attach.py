"""Without a Trainer: the weights that the callback's Trainer ends with, whoever wrote the loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_gc import GradientCentralization, attach
from tests.models import Classifier, fit, image_batches
from tests.optimizers import SharpnessAware, wraps_another

TARGETS = ["clipped_gradient", "update"]
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


def classifier(optimizer: str) -> Classifier:
    module = Classifier().double()
    module.configure_optimizers = lambda: OPTIMIZERS[optimizer](module.parameters())
    return module


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.double(), y) for x, y in image_batches()]


def by_callback(tmp_path: Any, optimizer: str, clip: float | None = 0.5, **arguments: Any) -> dict[str, torch.Tensor]:
    module = classifier(optimizer)
    callback = GradientCentralization(**arguments)
    fit(module, callback, precision="64-true", gradient_clip_val=clip, default_root_dir=tmp_path)
    return copy.deepcopy(module.state_dict())


def assert_equal(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_plain_loop(tmp_path, target, optimizer, with_closure):
    module = classifier(optimizer)
    stepped = module.configure_optimizers()
    attach(stepped, module, target=target, exclude="net.6")
    for batch in batches():

        def closure(batch=batch):
            stepped.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            return loss

        if with_closure:
            stepped.step(closure)
        else:
            closure()
            stepped.step()
    assert_equal(module, by_callback(tmp_path, optimizer, target=target, exclude="net.6"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_optimizer_that_calls_its_closure_several_times(target):
    """LBFGS: each call's gradients are centralized; the means of the weights are those of before the step."""
    module = classifier("SGD")
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)
    attach(optimizer, module, target=target)
    before = module.net[0].weight.detach().mean((1, 2, 3))
    seen = []

    def closure():
        seen.append(module.net[0].weight.grad)
        optimizer.zero_grad()
        loss = module.training_step(batches()[0], 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(seen) > 2
    change = (module.net[0].weight.detach().mean((1, 2, 3)) - before).abs().max()
    assert change < 1e-12
    if target == "clipped_gradient":
        assert seen[1].mean((1, 2, 3)).abs().max() < 1e-12


@pytest.mark.parametrize("hooked", [True, False])
def test_centralized_before_clipping(tmp_path, hooked):
    """`handle.centralize_()` alone is what `target="gradient"` does; clipping by norm leaves the means at zero."""
    module = classifier("SGD")
    optimizer = module.configure_optimizers()
    handle = attach(optimizer, module)
    if not hooked:
        handle.remove()
    for batch in batches():
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        handle.centralize_()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
    assert_equal(module, by_callback(tmp_path, "SGD", target="gradient"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("compiled", [False, True])
def test_fabric(tmp_path, target, compiled):
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    own = classifier("AdamW")
    optimizer = own.configure_optimizers()
    module, optimizer = fabric.setup(torch.compile(own, backend="eager") if compiled else own, optimizer)
    module.mark_forward_method("training_step")
    handle = attach(optimizer, module, target=target, include=["net.0", nn.Linear])
    for batch in batches():
        optimizer.zero_grad()
        fabric.backward(module.training_step(batch, 0))
        fabric.clip_gradients(module, optimizer, max_norm=0.5)
        optimizer.step()
    assert {entry.name for entry in handle.selection.centralized} == {"net.0.weight", "net.6.weight"}
    assert_equal(own, by_callback(tmp_path, "AdamW", target=target, include=["net.0", nn.Linear]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_accelerate(tmp_path, target):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    own = classifier("AdamW")
    module, optimizer = accelerator.prepare(own, own.configure_optimizers())
    handle = attach(optimizer, module, target=target)
    for batch in batches():
        optimizer.zero_grad()
        accelerator.backward(own.training_step(batch, 0))
        accelerator.clip_grad_norm_(own.parameters(), 0.5)
        optimizer.step()
    assert type(handle.optimizer) is torch.optim.AdamW
    assert_equal(own, by_callback(tmp_path, "AdamW", target=target))


def test_the_handle(tmp_path):
    module = classifier("SGD")
    optimizer = module.configure_optimizers()
    handle = attach(optimizer, module, exclude="net.0", fan_in_dims={"net.6.weight": 0})
    assert [entry.name for entry in handle.selection.centralized] == ["net.3.weight", "net.6.weight"]
    assert "SGD" in repr(handle)
    assert "2 of" in repr(handle)
    handle.remove()
    handle.remove()
    module.training_step(batches()[0], 0).backward()
    before = module.net[3].weight.grad.clone()
    optimizer.step()
    assert torch.equal(module.net[3].weight.grad, before)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_group_that_is_added_later_is_served():
    module = classifier("SGD")
    optimizer = torch.optim.SGD(module.net[0].parameters(), lr=0.1)
    handle = attach(optimizer, module)
    assert len(handle.selection.centralized) == 1
    optimizer.add_param_group({"params": module.net[6].parameters()})
    module.training_step(batches()[0], 0).backward()
    optimizer.step()
    assert module.net[6].weight.grad.mean(1).abs().max() < 1e-12
    assert len(handle.selection.centralized) == 2


def test_a_step_without_gradients_is_told_once():
    module = classifier("SGD")
    optimizer = module.configure_optimizers()
    attach(optimizer, module)
    with pytest.warns(
        UserWarning, match=r"none of the 3 selected parameters .*had a gradient.*nothing was centralized"
    ):
        optimizer.step()
    optimizer.step()  # warnings are errors


@pytest.mark.parametrize("target", TARGETS)
def test_a_closure_that_is_not_called_is_told(target):
    class Deaf(torch.optim.Adagrad):
        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter -= 0.1 * parameter.grad

    module = classifier("SGD")
    optimizer = Deaf(module.parameters(), lr=0.1)
    attach(optimizer, module, target=target)
    module.training_step(batches()[0], 0).backward()
    with pytest.warns(UserWarning, match=r"Deaf\.step\(\) was given a closure and did not call it.*Call it without"):
        optimizer.step(lambda: None)
    optimizer.step(lambda: None)  # told once: warnings are errors
    optimizer.step()
    if target == "clipped_gradient":
        assert module.net[6].weight.grad.mean(1).abs().max() < 1e-12


def test_weights_that_are_moved_before_the_closure_is_called(tmp_path):
    """Sharpness-aware minimisation: the weights after the closure are not those that the step starts from."""
    module = classifier("SGD")
    optimizer = SharpnessAware(module.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2)
    handle = attach(optimizer, module, target="update")

    def closure():
        optimizer.zero_grad()
        module.training_step(batches()[0], 0).backward()

    def weights():
        return copy.deepcopy(module.state_dict())

    closure()
    with pytest.warns(UserWarning, match=r"or moved the weights before it did.*attach\(\) on that one"):
        optimizer.step(closure)
    assert_equal(module, weights())
    # Which is good advice:
    handle.remove()
    attach(optimizer.base, module, target="update")
    before, means = weights(), module.net[6].weight.detach().mean(1)
    closure()
    optimizer.step(closure)
    assert (module.net[6].weight.detach().mean(1) - means).abs().max() < 1e-14
    assert (module.net[6].weight - before["net.6.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrapper_that_leaves_out_the_constructor_of_torch(target):
    """Torch runs no hooks around its steps until `zero_grad` is called."""
    module = classifier("SGD")
    optimizer = wraps_another(module.configure_optimizers())
    attach(optimizer, module, target=target)
    before = module.net[6].weight.detach().mean(1)
    module.training_step(batches()[0], 0).backward()
    optimizer.step()
    if target == "update":
        assert (module.net[6].weight.detach().mean(1) - before).abs().max() < 1e-14
    else:
        assert module.net[6].weight.grad.mean(1).abs().max() < 1e-14


def test_an_optimizer_that_is_given_other_parameters_is_told_once():
    module = classifier("SGD")
    optimizer = module.configure_optimizers()
    attach(optimizer, module)
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(3), requires_grad=True)]
    with pytest.warns(UserWarning, match="SGD takes a step on other parameters than it had when"):
        optimizer.step()
    optimizer.step()  # warnings are errors


class TestErrors:
    def attach(self, *args: Any, **kwargs: Any) -> Any:
        module = classifier("SGD")
        return attach(module.configure_optimizers(), module, *args, **kwargs)

    def test_gradient_has_no_place(self):
        with pytest.raises(ValueError, match=r"between backward and clipping.*handle\.centralize_\(\)"):
            self.attach(target="gradient")

    def test_another_target(self):
        with pytest.raises(ValueError, match=r"target='updates'.*'clipped_gradient', 'update'"):
            self.attach(target="updates")

    def test_the_wrong_way_round(self):
        module = classifier("SGD")
        with pytest.raises(TypeError, match=r"torch\.nn\.Module after the optimizer, got SGD"):
            attach(module, module.configure_optimizers())

    def test_no_optimizer(self):
        with pytest.raises(TypeError, match="an optimizer first, got Classifier"):
            attach(classifier("SGD"), classifier("SGD"))

    def test_an_optimizer_of_another_module(self):
        with pytest.raises(ValueError, match="holds no parameter of the Classifier"):
            attach(classifier("SGD").configure_optimizers(), classifier("SGD"))

    def test_a_typo(self):
        with pytest.raises(ValueError, match=r"'net\.7'.*closest"):
            self.attach(exclude="net.7")

    def test_nothing_left(self):
        with pytest.raises(ValueError, match="nothing to centralize"):
            self.attach(include="net.1")

    def test_an_optimizer_without_hooks(self):
        class Bare:
            def __init__(self, parameters):
                self.param_groups = [{"params": list(parameters)}]

        module = classifier("SGD")
        with pytest.raises(TypeError, match=r"step hooks of torch\.optim\.Optimizer, which Bare"):
            attach(Bare(module.parameters()), module)

    def test_an_optimizer_with_no_place_for_hooks(self):
        class NoPlace(torch.optim.Optimizer):
            def __init__(self, base):  # as torch's PostLocalSGDOptimizer
                self.param_groups = base.param_groups

        module = classifier("SGD")
        with pytest.raises(TypeError, match=r"step hooks of torch\.optim\.Optimizer, which NoPlace"):
            attach(NoPlace(module.configure_optimizers()), module)

    def test_an_optimizer_of_nothing_to_centralize(self):
        module = classifier("SGD")
        with pytest.raises(ValueError, match="nothing to centralize"):
            attach(torch.optim.SGD([module.net[6].bias], lr=0.1), module)

    def test_deepspeed_is_refused_by_name(self):
        module = classifier("SGD")
        module.net[0].weight.ds_id = 0
        with pytest.raises(ValueError, match=r"DeepSpeed.*Train with Lightning's Trainer"):
            attach(module.configure_optimizers(), module)
