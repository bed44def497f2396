"""What was removed from the weight vectors of some parameters, and what is logged of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

MEAN_PRE, MEAN_POST, REMOVED_NORM = "mean_pre", "mean_post", "removed_norm"


class Part(NamedTuple):
    """What was measured of one parameter: a few scalars, so that no more than its weight vectors' sums are held at a time.

    Attributes:
        vectors: How many weight vectors there are.
        fan_in: The number of elements of one weight vector.
        scale: What makes means of what was summed: the reciprocal of the fan-in for sums, 1 for means.
        before: The sum of the absolute values of the sums, or means, before.
        after: The same after.
        length: The square root of the sum of their squares before.
        norm: That of the gradient before, a scalar; None for weights.
    """

    vectors: int
    fan_in: int
    scale: float
    before: Tensor
    after: Tensor
    length: Tensor
    norm: Tensor | None

    @classmethod
    def of(cls, before: Tensor, after: Tensor, fan_in: int, scale: float = 1.0, norm: Tensor | None = None) -> Part:
        """From the sums, or means, of weight vectors before and after, of any shape, maybe of none."""
        length = torch.linalg.vector_norm
        return cls(before.numel(), fan_in, scale, length(before, 1), length(after, 1), length(before), norm)

    def nothing(self) -> Part:
        """Of another parameter, of which there was nothing to measure."""
        zero = torch.zeros_like(self.before)
        return Part(0, 0, 1.0, zero, zero, zero, None if self.norm is None else torch.zeros_like(self.norm))


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
    def of(cls, parts: Sequence[Part], device: torch.device) -> Measurement:
        """Of some parameters, at least one, one after the other."""
        known = tuple((part.vectors, part.scale, part.scale**2 * part.fan_in) for part in parts)
        vectors, scale, square_scale = _uploaded(known, device).unbind(1)

        def joined(scalars: Sequence[Tensor]) -> Tensor:
            return torch.stack([scalar.to(device) for scalar in scalars]).float()

        norms = [part.norm for part in parts if part.norm is not None]
        return cls(
            vectors,
            joined([part.before for part in parts]) * scale,
            joined([part.after for part in parts]) * scale,
            joined([part.length for part in parts]).square() * square_scale,
            joined(norms).square() if norms else None,
        )

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


@lru_cache(maxsize=32)
def _uploaded(known: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """What is known on the host, on the device: the same on each step that logs, so it is sent once. No host waits for it."""
    with torch.inference_mode(False):
        host = torch.tensor(known, dtype=torch.float32, pin_memory=device.type == "cuda")
        return host.to(device, non_blocking=True)
