"""The operations that are known, by autograd's names for them, without the ``Backward0`` at the end."""

from __future__ import annotations

from typing import NamedTuple


class Product(NamedTuple):
    """A product that sums.

    Attributes:
        summed: The operands that are multiplied, each with the axis that is summed over.
        weight: The operand that is a weight when the other is data without gradient.
        only_weights: Whether nothing but weights stand there, as far as layers go.
    """

    summed: dict[int, int]
    weight: int
    only_weights: bool = False


PRODUCTS = {
    "Mm": Product({0: -1, 1: -2}, weight=1, only_weights=True),
    "Addmm": Product({1: -1, 2: -2}, weight=2, only_weights=True),
    # Attention multiplies data with data by these two.
    "Bmm": Product({0: -1, 1: -2}, weight=1),
    "Baddbmm": Product({1: -1, 2: -2}, weight=2),
    "Mv": Product({0: -1, 1: -1}, weight=0),
    "Addmv": Product({1: -1, 2: -1}, weight=1),
    "Dot": Product({0: -1, 1: -1}, weight=0),
    "GroupedMm": Product({0: -1, 1: -2}, weight=1),
    "Linear": Product({0: -1, 1: -1}, weight=1, only_weights=True),
    "MkldnnLinear": Product({0: -1, 1: -1}, weight=1, only_weights=True),
    # A custom function: what DeepSpeed puts in the place of `F.linear` under ZeRO 3.
    "LinearFunctionForZeroStage3Backward": Product({0: -1, 1: -1}, weight=1, only_weights=True),
}
CONVOLUTIONS = frozenset({"Convolution", "MkldnnConvolution", "ConvolutionOverrideable"})
BILINEAR = "Trilinear"

EMBEDDINGS = frozenset({"Embedding", "EmbeddingBag"})
LOOK_UPS = EMBEDDINGS | {"Index", "UnsafeIndex", "IndexSelect", "Gather", "Take"}
SLICES = frozenset({"Slice", "Split", "SplitWithSizes", "Chunk", "Narrow", "UnsafeSplit"})
SELECTS = frozenset({"Select", "Unbind"})
RESHAPES = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias", "Clone", "ToCopy", "ViewAs"}
)
EXPANDS = frozenset({"Expand", "Repeat"})
TRANSPOSES = frozenset({"T", "Transpose", "Permute"})
VIEWS = SLICES | SELECTS | RESHAPES | EXPANDS | TRANSPOSES

JOINS = frozenset({"Cat", "Stack", "ConstantPadNd"})
SUMS = frozenset({"Sum", "Mean"})
OTHER_REDUCTIONS = frozenset(
    {"LinalgVectorNorm", "Norm", "Max", "Min", "Logsumexp", "Amax", "Amin", "Var", "Std", "Prod"}
)

ADDITIONS = frozenset({"Add", "Sub", "Rsub"})
MULTIPLICATIONS = frozenset({"Mul", "Div"})
# Element by element, and linear in each of its operands.
LINEAR = (
    ADDITIONS | MULTIPLICATIONS | {"Neg", "MaskedFill", "Where", "NativeDropout", "Addcmul", "Lerp", "Flip", "Roll"}
)
# Element by element, or along some axes: what is given has the shape of what is taken.
NONLINEAR = frozenset(
    {
        "Abs", "Addcdiv", "Atan", "Clamp", "ClampMax", "ClampMin", "Cos", "Elu", "Erf", "Exp", "Expm1", "Gelu",
        "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log1P", "LogSigmoid", "Maximum", "Minimum", "Mish",
        "Pow", "PreluKernel", "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Sign", "Silu", "Sin", "Softplus", "Sqrt",
        "Tanh", "Threshold", "Tril", "Triu",
        "LogSoftmax", "SafeSoftmax", "Softmax", "Cumsum",
        "FusedRmsNorm", "MkldnnRmsNorm", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "CudnnBatchNorm", "WeightNormInterface",
    }
)  # fmt: skip
ELEMENTWISE = LINEAR | NONLINEAR
# What layers and losses do with data, of which no weight vector is told any more.
ATTENTION = frozenset(
    {
        "ScaledDotProductFlashAttention", "ScaledDotProductFlashAttentionForCpu", "ScaledDotProductEfficientAttention",
        "ScaledDotProductCudnnAttention", "ScaledDotProductFusedAttentionOverrideable",
    }
)  # fmt: skip
LOSSES = frozenset(
    {
        "NllLoss", "NllLossNd", "NllLoss2D", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy",
        "BinaryCrossEntropyWithLogits", "KlDiv", "CtcLoss", "SoftMarginLoss", "MultiMarginLoss",
    }
)  # fmt: skip
