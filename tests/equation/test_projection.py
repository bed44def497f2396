"""The equation on one tensor: literal cases, the oracle, errors, memory, derivatives."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gc import centralize, centralize_
from lightning_gc.equation import projection
from lightning_gc.equation.projection import norm_of, recentre_, vector_means
from lightning_gc.equation.traits import accumulation_dtype
from tests import oracle
from tests.cases import LAYOUTS

# The cases of optax's own test of `centralize()`.
OPTAX_CASES = [
    pytest.param([1.0, 2.0], [1.0, 2.0], id="1d"),
    pytest.param([[1.0, 2.0], [3.0, 4.0]], [[-0.5, 0.5], [-0.5, 0.5]], id="2d"),
    pytest.param(
        [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]],
        [[[-1.5, -0.5], [0.5, 1.5]], [[-1.5, -0.5], [0.5, 1.5]]],
        id="3d",
    ),
]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def rounding(dtype: torch.dtype) -> float:
    """Some roundings of a dtype, for values of magnitude 1 to 10."""
    return 20 * torch.finfo(dtype).eps


def strange_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, as every other element of a larger tensor whose dims are in reverse order."""
    room = torch.full([2 * size for size in reversed(tensor.shape)], 99.0, dtype=tensor.dtype)
    view = room[tuple(slice(None, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.dim())))
    view.copy_(tensor)
    return view


class TestOptaxCases:
    @pytest.mark.parametrize(("given", "expected"), OPTAX_CASES)
    def test_out_of_place(self, given, expected):
        torch.testing.assert_close(centralize(torch.tensor(given)), torch.tensor(expected), rtol=0, atol=0)

    @pytest.mark.parametrize(("given", "expected"), OPTAX_CASES)
    def test_in_place(self, given, expected):
        torch.testing.assert_close(centralize_(torch.tensor(given)), torch.tensor(expected), rtol=0, atol=0)

    @pytest.mark.parametrize("shape", [(), (4,), (4, 3), (4, 3, 2), (2, 3, 4, 5)])
    def test_equals_optax_itself(self, shape):
        jnp = pytest.importorskip("jax.numpy")
        optax = pytest.importorskip("optax")
        given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        expected, _ = optax.centralize().update(jnp.asarray(given.numpy()), optax.EmptyState())
        np.testing.assert_allclose(centralize(given).numpy(), np.asarray(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dims", "groups"), LAYOUTS)
class TestAgainstTheOracle:
    @pytest.fixture
    def tensor(self, shape, dtype):
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) + 3

    def close(self, actual, expected, dtype):
        np.testing.assert_allclose(oracle.to_numpy(actual), expected, rtol=0, atol=rounding(dtype))

    def test_out_of_place(self, tensor, dims, groups, dtype):
        before = tensor.clone()
        out = centralize(tensor, dims, groups=groups)
        self.close(out, oracle.centralized(tensor, dims, groups), dtype)
        assert out.dtype == dtype
        assert out.shape == tensor.shape
        assert torch.equal(tensor, before)

    def test_in_place(self, tensor, dims, groups, dtype):
        expected = oracle.centralized(tensor, dims, groups)
        assert centralize_(tensor, dims, groups=groups) is tensor
        self.close(tensor, expected, dtype)

    def test_in_place_with_strange_strides(self, tensor, dims, groups, dtype):
        view = strange_strides(tensor)
        centralize_(view, dims, groups=groups)
        self.close(view, oracle.centralized(tensor, dims, groups), dtype)
        view.fill_(99.0)  # and nothing in between was touched
        assert (view._base == 99.0).all()

    def test_negative_dims(self, tensor, dims, groups, dtype):
        negative = [d - tensor.dim() for d in reversed(dims)]
        assert torch.equal(centralize(tensor, negative, groups=groups), centralize(tensor, dims, groups=groups))

    def test_means(self, tensor, dims, groups, dtype):
        means = vector_means(tensor, dims, groups)
        assert means.dtype == accumulation_dtype(dtype)
        np.testing.assert_allclose(
            means.flatten().numpy(), oracle.means_of(oracle.to_numpy(tensor), dims, groups), rtol=1e-6
        )

    def test_recentre_moves_means_to_a_target_and_returns_the_sums_of_what_it_removed(
        self, tensor, dims, groups, dtype
    ):
        before = vector_means(tensor, dims, groups)
        target = torch.arange(before.numel()).reshape(before.shape).to(before.dtype) / 4
        removed = recentre_(tensor, dims, groups, target)
        torch.testing.assert_close(removed, (before - target) * (tensor.numel() // before.numel()))
        np.testing.assert_allclose(
            oracle.means_of(oracle.to_numpy(tensor), dims, groups), target.flatten().numpy(), atol=rounding(dtype)
        )

    def test_norm(self, tensor, dims, groups, dtype):
        norm = norm_of(tensor)
        assert not norm.is_complex()
        np.testing.assert_allclose(norm.numpy(), np.linalg.norm(oracle.to_numpy(tensor)), rtol=1e-5)


class TestOddTensors:
    @pytest.mark.parametrize("shape", [(), (3,), (0,)])
    def test_fewer_than_two_dims_stay(self, shape):
        tensor = torch.ones(shape)
        out = centralize(tensor)
        assert torch.equal(out, tensor)
        assert out is not tensor
        assert torch.equal(centralize_(tensor), torch.ones(shape))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4)])
    def test_zero_size(self, shape, dtype):
        assert centralize(torch.empty(shape, dtype=dtype)).shape == shape
        assert centralize_(torch.empty(shape, dtype=dtype)).shape == shape
        assert norm_of(torch.empty(shape, dtype=dtype)) == 0
        means = vector_means(torch.empty(shape, dtype=dtype), tuple(range(1, len(shape))))
        assert means.shape == (shape[0], *[1] * (len(shape) - 1))

    def test_no_dims_at_all_change_nothing(self):
        tensor = torch.ones(2, 3)
        assert torch.equal(centralize(tensor, ()), torch.ones(2, 3))
        assert torch.equal(centralize_(tensor, ()), torch.ones(2, 3))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("dims", "groups"), [((1,), 1), ((0,), 1), ((0,), 2), ((0, 1), 2)])
    @pytest.mark.parametrize("source", [(1, 3), (4, 1), (1, 1)])
    def test_expanded_out_of_place(self, source, dims, groups, dtype):
        tensor = torch.randn(source, dtype=dtype).expand(4, 3)
        expected = oracle.centralized(tensor, dims, groups)
        np.testing.assert_allclose(
            oracle.to_numpy(centralize(tensor, dims, groups=groups)), expected, rtol=0, atol=rounding(dtype)
        )

    def test_expanded_in_place_is_refused_and_left_as_it_was(self):
        tensor = torch.arange(3.0).expand(2, 3)
        with pytest.raises(ValueError, match=r"expanded.*strides \(0, 1\).*Use centralize\(\)"):
            centralize_(tensor)
        assert torch.equal(tensor[0], torch.arange(3.0))

    @pytest.mark.parametrize("step", [1, 2])
    def test_overlapping_in_place_is_refused(self, step):
        tensor = torch.arange(7.0).unfold(0, 3, step)  # windows that share elements
        expected = oracle.centralized(tensor, (1,))
        with pytest.raises(ValueError, match="share"):
            centralize_(tensor)
        np.testing.assert_allclose(centralize(tensor).numpy(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("shape", "strides"), [((1, 3), (0, 1)), ((3, 1), (1, 0)), ((2, 1, 3), (3, 0, 1))])
    def test_strides_of_dims_of_size_one_lead_nowhere(self, shape, strides):
        tensor = torch.arange(6.0).as_strided(shape, strides)
        expected = oracle.centralized(tensor, (1,))
        np.testing.assert_allclose(centralize_(tensor, 1).numpy(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    def test_conjugate_view(self, dtype):
        tensor = torch.randn(3, 4, dtype=dtype)
        expected = oracle.centralized(tensor.conj(), (1,))
        np.testing.assert_allclose(
            centralize(tensor.conj()).resolve_conj().numpy(), expected, rtol=0, atol=rounding(dtype)
        )
        centralize_(tensor.conj())
        np.testing.assert_allclose(tensor.conj().resolve_conj().numpy(), expected, rtol=0, atol=rounding(dtype))

    def test_a_parameter_and_its_gradient(self):
        weight = nn.Parameter(torch.ones(2, 4))
        weight.grad = torch.arange(8.0).reshape(2, 4)
        centralize_(weight.grad)
        assert torch.equal(weight.grad, torch.tensor([[-1.5, -0.5, 0.5, 1.5], [-1.5, -0.5, 0.5, 1.5]]))
        centralize_(weight)  # a leaf that requires a gradient can be changed in place as well
        assert torch.equal(weight.detach(), torch.zeros(2, 4))
        assert not isinstance(centralize(weight), nn.Parameter)

    def test_channels_last_is_kept(self):
        tensor = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
        assert centralize(tensor).is_contiguous(memory_format=torch.channels_last)
        expected = oracle.centralized(tensor, (1, 2, 3))
        centralize_(tensor)
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
    def test_inf_and_nan_stay_in_their_weight_vector(self, bad, dtype):
        tensor = torch.randn(4, 6, dtype=dtype)
        tensor[2, 3] = bad
        for out in (centralize(tensor), centralize_(tensor.clone())):
            assert not out[2].isfinite().any()  # a scaler sees it, whichever element it looks at
            np.testing.assert_allclose(
                oracle.to_numpy(out[[0, 1, 3]]), oracle.centralized(tensor[[0, 1, 3]], (1,)), atol=rounding(dtype)
            )

    def test_float8_is_rounded_once(self):
        tensor = torch.tensor([[1.0, 2.0, 4.5]]).to(torch.float8_e4m3fn)
        expected = (tensor.float() - tensor.float().mean()).to(torch.float8_e4m3fn)
        assert torch.equal(centralize_(tensor).float(), expected.float())


class TestErrors:
    @pytest.mark.parametrize("function", [centralize, centralize_])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
    def test_dtype(self, function, dtype):
        with pytest.raises(TypeError, match=f"floating point and complex.*{dtype}"):
            function(torch.ones(2, 3, dtype=dtype))

    @pytest.mark.parametrize("function", [centralize, centralize_])
    def test_not_a_tensor(self, function):
        with pytest.raises(TypeError, match=r"torch\.Tensor, got list"):
            function([[1.0, 2.0]])

    @pytest.mark.parametrize("function", [centralize, centralize_])
    def test_layout(self, function):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            tensor = torch.eye(3).to_sparse_csr()
        with pytest.raises(TypeError, match=r"dense and sparse COO.*sparse_csr"):
            function(tensor)

    @pytest.mark.parametrize("function", [centralize, centralize_])
    @pytest.mark.parametrize("dims", [2, -3, (0, 5)])
    def test_dims_out_of_range(self, function, dims):
        with pytest.raises(ValueError, match=r"out of range for shape \(2, 3\).*-2 to 1"):
            function(torch.ones(2, 3), dims)

    @pytest.mark.parametrize("function", [centralize, centralize_])
    def test_groups(self, function):
        with pytest.raises(ValueError, match="groups=2 does not divide dim 0"):
            function(torch.ones(3, 3), (0,), groups=2)


class TestDerivatives:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize(("shape", "dims", "groups"), LAYOUTS)
    def test_gradcheck(self, shape, dims, groups, dtype):
        tensor = torch.randn(shape, dtype=dtype, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t: centralize(t, dims, groups=groups), (tensor,))
        assert torch.autograd.gradgradcheck(lambda t: centralize(t, dims, groups=groups).pow(2), (tensor,))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_gradient_is_centralized(self, dtype):
        """P is self-adjoint, so the derivative of <P x, c> is P c."""
        tensor = torch.randn(3, 4, dtype=dtype, requires_grad=True)
        direction = torch.randn(3, 4, dtype=dtype)
        centralize(tensor).backward(direction)
        torch.testing.assert_close(tensor.grad, centralize(direction))

    def test_through_vmap(self):
        batch = torch.randn(5, 3, 4)
        torch.testing.assert_close(torch.func.vmap(centralize)(batch), centralize(batch, 2))

    def test_in_place_on_a_gradient_with_a_graph(self):
        weight = torch.randn(3, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(weight.pow(3).sum(), weight, create_graph=True)
        expected = oracle.centralized(gradient, (1,))
        centralize_(gradient)
        np.testing.assert_allclose(gradient.detach().numpy(), expected, atol=1e-5)


class TestSixteenBits:
    """One rounding of the element type."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("fan_in", [64, 576, 4096, pytest.param(28672, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
    @pytest.mark.parametrize("function", [centralize, centralize_])
    def test_residual_mean_is_at_most_one_rounding(self, function, offset, fan_in, dtype):
        """|mean(P g)| <= u max|P g| + 2**-20 max|g|, with u = eps / 2 the element type's rounding.

        Each element of P g is rounded once, by at most u |P g|; the second term is what float32 loses
        in the mean. In the element type itself the error is a rounding of the *offset*.
        """
        generator = torch.Generator().manual_seed(fan_in)
        gradient = (torch.randn(16, fan_in, generator=generator) + offset).to(dtype)
        out = function(gradient.clone()).double()
        u = torch.finfo(dtype).eps / 2
        bound = u * out.abs().amax(1) + 2.0**-20 * gradient.double().abs().amax(1)
        assert (out.mean(1).abs() <= bound).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_mean_in_the_element_type_would_not_do(self, dtype):
        """The test above can fail: the authors' line does."""
        gradient = (torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)) + 30).to(dtype)
        out = gradient.clone().add_(-gradient.mean(1, keepdim=True)).double()
        u = torch.finfo(dtype).eps / 2
        bound = u * out.abs().amax(1) + 2.0**-20 * gradient.double().abs().amax(1)
        assert (out.mean(1).abs() > bound).any()

    @pytest.mark.parametrize(("shape", "dims", "groups"), LAYOUTS)
    @pytest.mark.parametrize("moved", [False, True])
    def test_the_way_of_other_devices_agrees(self, shape, dims, groups, moved, monkeypatch):
        """On other devices than the CPU the kernels widen as they read, so nothing is cut into blocks."""
        tensor = torch.randn(shape, dtype=torch.bfloat16)
        in_blocks, kernels = tensor.clone(), tensor.clone()
        target = vector_means(tensor, dims, groups) / 2 if moved else None
        removed = recentre_(in_blocks, dims, groups, target)
        norm, means = norm_of(in_blocks), vector_means(in_blocks, dims, groups)
        monkeypatch.setattr(projection, "widens_as_it_reads", lambda tensor: True)
        torch.testing.assert_close(recentre_(kernels, dims, groups, target), removed)
        torch.testing.assert_close(kernels, in_blocks)
        torch.testing.assert_close(vector_means(kernels, dims, groups), means)
        torch.testing.assert_close(norm_of(kernels), norm)
