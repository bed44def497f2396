"""One parameter of a selection."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gc import select


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (nn.Linear(3, 2, bias=False), "Entry('weight', shape=(2, 3), dims=(1,), source='Linear')"),
        (nn.BatchNorm1d(3), "Entry('weight', shape=(3,), reason='normalisation layer')"),
        (
            nn.ConvTranspose1d(4, 6, 3, groups=2),
            "Entry('weight', shape=(4, 3, 3), dims=(0, 2), groups=2, source='ConvTranspose1d')",
        ),
        (
            nn.Linear(3, 2, bias=False).requires_grad_(False),
            "Entry('weight', shape=(2, 3), dims=(1,), source='Linear', reason='frozen: it requires no gradient')",
        ),
    ],
)
def test_its_repr_is_a_line_without_the_weights(module, shown):
    assert repr(select(module)[0]) == shown
