"""Shapes, fan-in dims and groups that several test modules go through."""

import pytest

# shape, fan-in dims, groups: of the layers in the table of layouts, and some odd ones.
LAYOUTS = [
    pytest.param((5, 7), (1,), 1, id="linear"),
    pytest.param((4, 3, 2, 5), (1, 2, 3), 1, id="conv"),
    pytest.param((4, 3, 2, 5), (0, 2, 3), 1, id="transposed conv"),
    pytest.param((6, 3, 2, 5), (0, 2, 3), 3, id="grouped transposed conv"),
    pytest.param((6, 1, 3), (0, 2), 6, id="depthwise transposed conv"),
    pytest.param((5, 7), (0,), 1, id="transposed linear"),
    pytest.param((2, 3, 4), (2,), 1, id="experts, out by in"),
    pytest.param((2, 3, 4), (1,), 1, id="experts, in by out"),
    pytest.param((3, 4), (0, 1), 1, id="one weight vector"),
    pytest.param((7,), (0,), 1, id="one dim"),
    pytest.param((6,), (0,), 2, id="one dim in groups"),
    pytest.param((1, 1, 1), (1, 2), 1, id="one element"),
]
