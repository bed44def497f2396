"""What was removed from the weight vectors of some parameters, and what is logged of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MEAN_PRE, MEAN_POST, REMOVED_NORM = "mean_pre", "mean_post", "removed_norm"


class Measurement(NamedTuple):
    r"""Sums over the weight vectors :math:`i` of each of P parameters, of fan-in :math:`n_i` and mean :math:`\mu_i`.

    They add up: over parameters, over ranks, and over steps. Each is of shape (P,).

    Attributes:
        vectors: How many weight vectors there are.
        before: :math:`\sum_i |\mu_i|` before.
        after: The same after.
        squared_removed: :math:`\sum_i n_i |\mu_i|^2` before: the squared norm of what was removed.
        squared_norm: That of the whole gradient before; None for weights.
    """

    vectors: Tensor
    before: Tensor
    after: Tensor
    squared_removed: Tensor
    squared_norm: Tensor | None

    @classmethod
    def of_one(cls, before: Tensor, after: Tensor, fan_in: int, squared_norm: Tensor | None) -> Measurement:
        """Of one parameter, from the means of its weight vectors, of any shape; maybe of none."""
        return cls(
            torch.full((1,), before.numel(), dtype=torch.float32, device=before.device),
            torch.linalg.vector_norm(before, 1).float().view(1),
            torch.linalg.vector_norm(after, 1).float().view(1),
            torch.linalg.vector_norm(before).float().square().mul(fan_in).view(1),
            None if squared_norm is None else squared_norm.float().view(1),
        )

    @classmethod
    def joined(cls, parts: Sequence[Measurement]) -> Measurement:
        """The parameters of several, at least one, one after the other, on the device of the first."""
        return cls._combined(torch.cat, parts)

    @classmethod
    def added(cls, parts: Sequence[Measurement]) -> Measurement:
        """What several, at least one, measured of the same parameters, on the device of the first."""
        if len(parts) == 1:
            return parts[0]
        return cls._combined(lambda sums: torch.stack(sums).sum(0), parts)

    def placed(self, places: Tensor, count: int) -> Measurement:
        """Of `count` parameters, of which those at `places` were measured; zero for the others."""
        return self._map(lambda sums: sums.new_zeros(count).index_copy_(0, places, sums))

    def to(self, device: torch.device) -> Measurement:
        """On another device, or on the same."""
        return self if self.before.device == device else self._map(lambda sums: sums.to(device))

    def nothing(self) -> Measurement:
        """Of as many parameters, on the same device, of which there was nothing to measure."""
        return self._map(torch.zeros_like)

    def with_removed(self) -> Measurement:
        """With the norm of the gradient before instead of that after.

        Pythagoras: what was removed is orthogonal to what is left.
        """
        norm = self.squared_norm
        return self if norm is None else self._replace(squared_norm=norm + self.squared_removed)

    def total(self) -> Measurement:
        """Of all parameters together, as if they were one."""
        if self.before.numel() == 1:
            return self
        return self._map(lambda sums: sums.sum(0, keepdim=True))

    def unscaled(self, scale: Tensor | float) -> Measurement:
        """Of the gradients divided by `scale`."""
        norm = self.squared_norm
        return Measurement(
            self.vectors,
            self.before / scale,
            self.after / scale,
            self.squared_removed / scale / scale,
            None if norm is None else norm / scale / scale,
        )

    def values(self, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """What is logged, by name: of all together and, if `names` are given, of each of the parameters.

        ``removed_norm`` is left out without a norm. A parameter without weight vectors has the value zero.
        """
        values = {quantity: of_all.squeeze(0) for quantity, of_all in self.total()._ratios().items()}
        if names:
            for quantity, of_each in self._ratios().items():
                for name, value in zip(names, of_each, strict=True):
                    values[f"{quantity}/{name}"] = value
        return values

    @classmethod
    def _combined(cls, combine: Callable[[list[Tensor]], Tensor], parts: Sequence[Measurement]) -> Measurement:
        parts = [part.to(parts[0].before.device) for part in parts]
        norms = [part.squared_norm for part in parts if part.squared_norm is not None]
        return cls(
            combine([part.vectors for part in parts]),
            combine([part.before for part in parts]),
            combine([part.after for part in parts]),
            combine([part.squared_removed for part in parts]),
            combine(norms) if norms else None,
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Measurement:
        return self._combined(lambda sums: change(sums[0]), [self])

    def _ratios(self) -> dict[str, Tensor]:
        values = {MEAN_PRE: _ratio(self.before, self.vectors), MEAN_POST: _ratio(self.after, self.vectors)}
        if self.squared_norm is not None:
            values[REMOVED_NORM] = _ratio(self.squared_removed, self.squared_norm).sqrt()
        return {name: value.float() for name, value in values.items()}


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 0 for 0 / 0: an absent parameter removes nothing."""
    return torch.where(whole == 0, part, part / whole)
