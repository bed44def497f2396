"""The dims are right by the paper's own property, not by our table.

Yong et al., section 4.2: with plain SGD, a weight vector w keeps eᵀw. So what a constant γ added to
every input does to an output unit's pre-activation, γ Σᵢ wᵢ, is after any number of steps what it was
at initialisation. This holds for the true weight vectors alone: the sums here are taken by *running the
layer*, and would move if the gradient were centralized over any other dims.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lightning_gc import GradientCentralization, select
from tests.models import Classifier, fit
from tests.selection.test_layouts import named

GAMMA = 3.0
STEPS = 6


@dataclass(frozen=True)
class Layer:
    """A layer, its input, and where its output has seen every tap of its weight vectors.

    Attributes:
        make: Makes the layer.
        shape: The shape of the input, after the batch.
        interior: Those positions of the output that see all taps and no padding.
        weights: The parameters that the input is multiplied with.
        pre_activation: From the layer and its input to the output units, before any nonlinearity.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    interior: tuple[slice, ...] = ()
    weights: tuple[str, ...] = ("weight",)
    pre_activation: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)

    def effect_of_a_constant(self, layer: nn.Module, gamma: float = GAMMA) -> Tensor:
        """What adding `gamma` to every input does to each output unit."""
        x = torch.randn(2, *self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            change = self.pre_activation(layer, x + gamma) - self.pre_activation(layer, x)
        return change[(slice(None), slice(None), *self.interior)] if self.interior else change


class Experts(nn.Module):
    """Runs stacked experts on all inputs, as the transformers' modules do for those they pick."""

    def __init__(self, qualified_name: str, transposed: bool) -> None:
        super().__init__()
        up, down = ((3, 5, 8), (3, 4, 5)) if transposed else ((3, 8, 5), (3, 5, 4))
        self.experts = named(qualified_name, gate_up_proj=up, down_proj=down)
        self.transposed = transposed
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.tanh(self.project(x, "gate_up_proj")[..., :4]), "down_proj").sum(1)

    def project(self, x: Tensor, name: str) -> Tensor:
        weight = getattr(self.experts, name)
        if name == "gate_up_proj":
            x = x.unsqueeze(1).expand(-1, 3, -1)
        return torch.einsum("bei,eio->beo" if self.transposed else "bei,eoi->beo", x, weight)


class Recurrent(nn.Module):
    """A recurrent layer, or a cell stepped along the sequence; its last output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.RNNBase):
            return self.layer(x)[0][:, -1]
        state = None
        for step in range(x.shape[1]):
            state = self.layer(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


class Attention(nn.MultiheadAttention):
    """Self-attention."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1)


class BilinearOfProducts(nn.Bilinear):
    """What is multiplied with the weights of a bilinear layer: the products of its two inputs, all given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,oij->bo", x, self.weight) + self.bias


def conv1d_of_transformers() -> nn.Module:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(4, 6)
    nn.init.normal_(layer.weight)
    return layer


inner = slice(2, -2)
LAYERS = [
    pytest.param(Layer(lambda: nn.Linear(6, 4), (6,)), id="Linear"),
    pytest.param(Layer(lambda: nn.Linear(6, 1), (6,)), id="Linear to one output"),
    pytest.param(Layer(lambda: BilinearOfProducts(3, 2, 4), (3, 2)), id="Bilinear"),
    pytest.param(Layer(lambda: nn.Conv1d(3, 4, 3), (3, 9)), id="Conv1d"),
    pytest.param(Layer(lambda: nn.Conv1d(3, 4, 3, padding=2), (3, 9), (inner,)), id="Conv1d, padded"),
    pytest.param(Layer(lambda: nn.Conv2d(3, 4, 3), (3, 6, 7)), id="Conv2d"),
    pytest.param(Layer(lambda: nn.Conv2d(4, 6, (2, 3), stride=2, groups=2), (4, 7, 7)), id="Conv2d, groups and stride"),
    pytest.param(Layer(lambda: nn.Conv2d(3, 6, 3, dilation=2, groups=3), (3, 8, 7)), id="Conv2d, depthwise, dilation"),
    pytest.param(Layer(lambda: nn.Conv3d(2, 3, 2), (2, 4, 3, 4)), id="Conv3d"),
    # With stride 1 every interior position sees all taps. With stride s it sees every s-th alone, so what
    # a constant does to one position may change; s positions in a row see all, so their mean may not.
    pytest.param(Layer(lambda: nn.ConvTranspose1d(3, 4, 3), (3, 9), (inner,)), id="ConvTranspose1d"),
    pytest.param(Layer(lambda: nn.ConvTranspose2d(3, 4, 3), (3, 6, 7), (inner, inner)), id="ConvTranspose2d"),
    pytest.param(
        Layer(lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2), (4, 6, 7), (inner, inner)),
        id="ConvTranspose2d, groups",
    ),
    pytest.param(
        Layer(lambda: nn.ConvTranspose1d(6, 6, 3, groups=6), (6, 9), (inner,)), id="ConvTranspose1d, depthwise"
    ),
    pytest.param(
        Layer(lambda: nn.ConvTranspose2d(4, 2, 2, groups=2, dilation=2), (4, 6, 6), (inner, inner)),
        id="ConvTranspose2d, groups and dilation",
    ),
    pytest.param(
        Layer(
            lambda: nn.ConvTranspose2d(4, 6, (3, 4), stride=2, groups=2),
            (4, 6, 7),
            (inner, inner),
            pre_activation=lambda m, x: nn.functional.avg_pool2d(m(x)[:, :, :12, :12], 2),
        ),
        id="ConvTranspose2d, groups and stride",
    ),
    pytest.param(
        Layer(lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), (4, 4, 5, 4), (slice(1, -1),) * 3),
        id="ConvTranspose3d, groups",
    ),
    *[
        pytest.param(
            Layer(
                lambda kind=kind, layer=layer: Recurrent(kind(4, 4, **({"batch_first": True} if layer else {}))),
                (5, 4),
                weights=(f"layer.weight_{which}{layer}",),
                pre_activation=lambda m, x, which=which, layer=layer: nn.functional.linear(
                    x, m.get_parameter(f"layer.weight_{which}{layer}")
                ),
            ),
            id=f"{kind.__name__}, {'input' if which == 'ih' else 'recurrent'} weights",
        )
        for layer, kinds in (("_l0", (nn.RNN, nn.LSTM, nn.GRU)), ("", (nn.RNNCell, nn.LSTMCell, nn.GRUCell)))
        for kind in kinds
        for which in ("ih", "hh")
    ],
    pytest.param(
        Layer(
            lambda: Attention(4, 2),
            (5, 4),
            weights=("in_proj_weight",),
            pre_activation=lambda m, x: nn.functional.linear(x, m.in_proj_weight),
        ),
        id="MultiheadAttention, input projections",
    ),
    pytest.param(Layer(conv1d_of_transformers, (6,)), id="transformers' Conv1D"),
    *[
        pytest.param(
            Layer(
                lambda name=name, transposed=transposed: Experts(name, transposed),
                (5,),
                weights=("experts.gate_up_proj",),
                pre_activation=lambda m, x: m.project(x, "gate_up_proj").flatten(1),
            ),
            id=f"stacked experts, {name.rsplit('.', 1)[-1]}",
        )
        for name, transposed in (
            ("transformers.models.mixtral.modeling_mixtral.MixtralExperts", False),
            ("transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts", True),
        )
    ],
]


def trained(layer: Layer, *callbacks: GradientCentralization) -> tuple[nn.Module, nn.Module]:
    """The layer at initialisation, and after `STEPS` steps of plain SGD in a real Trainer, in float64."""
    torch.manual_seed(0)
    module = layer.make()
    x = torch.randn(4 * STEPS, *layer.shape) + 1  # inputs with a mean, as after a ReLU
    outputs = module(x[:1]).flatten(1).shape[1]
    head = nn.Sequential(module, nn.Tanh(), nn.Flatten(), nn.Linear(outputs, 3))
    head = head.double()
    before = copy.deepcopy(module)
    labels = torch.randint(0, 3, (4 * STEPS,))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=4)
    trainer = fit(Classifier(head, lr=0.5), *callbacks, data=data, precision="64-true")
    assert trainer.global_step == STEPS
    return before, module


def means(module: nn.Module, name: str) -> Tensor:
    """The means of the weight vectors, by the table."""
    from lightning_gc.equation.projection import vector_means

    (entry,) = [entry for entry in select(module) if entry.name == name]
    return vector_means(entry.parameter.detach(), entry.layout.dims, entry.layout.groups)


@pytest.mark.parametrize("layer", LAYERS)
class TestPaperProperty:
    def test_a_constant_keeps_its_effect(self, layer):
        before, after = trained(layer, GradientCentralization())
        for name in layer.weights:
            assert not torch.allclose(before.get_parameter(name), after.get_parameter(name), rtol=0, atol=1e-3)
            torch.testing.assert_close(means(after, name), means(before, name), rtol=0, atol=1e-13)
        torch.testing.assert_close(
            layer.effect_of_a_constant(after), layer.effect_of_a_constant(before), rtol=0, atol=1e-11
        )

    def test_without_the_callback_it_does_not(self, layer):
        before, after = trained(layer)
        for name in layer.weights:
            assert (means(after, name) - means(before, name)).abs().max() > 1e-4
        assert (layer.effect_of_a_constant(after) - layer.effect_of_a_constant(before)).abs().max() > 1e-3


WRONG_DIMS = [
    pytest.param(Layer(lambda: nn.Linear(6, 4), (6,)), [0], id="Linear"),
    pytest.param(
        Layer(lambda: nn.ConvTranspose2d(3, 4, 3), (3, 6, 7), (inner, inner)), [1, 2, 3], id="ConvTranspose2d"
    ),
    pytest.param(Layer(conv1d_of_transformers, (6,)), [1], id="transformers' Conv1D"),
    pytest.param(  # over all groups: too many inputs
        Layer(lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 9), (inner,)), [0, 2], id="ConvTranspose1d, groups"
    ),
]


@pytest.mark.parametrize(("layer", "dims"), WRONG_DIMS)
def test_over_other_dims_the_effect_moves(layer, dims):
    """So the tests above can fail."""
    before, after = trained(layer, GradientCentralization(fan_in_dims={"net.0.weight": dims}))
    assert (layer.effect_of_a_constant(after) - layer.effect_of_a_constant(before)).abs().max() > 1e-3


def test_the_products_are_those_of_the_bilinear_layer():
    layer = BilinearOfProducts(3, 2, 4)
    a, b = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(layer(torch.einsum("bi,bj->bij", a, b)), nn.Bilinear.forward(layer, a, b))


def test_nothing_else_is_held_fast():
    """Over too few dims, such as a kernel's, the effect would stay as well, and more with it than should."""
    before, after = trained(Layer(lambda: nn.Conv2d(3, 4, 3), (3, 6, 7)), GradientCentralization())
    of_kernels = after.weight.mean((2, 3)) - before.weight.mean((2, 3))
    assert of_kernels.abs().min() > 1e-6
    assert of_kernels.sum(1).abs().max() < 1e-13
