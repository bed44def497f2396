"""What was removed: the means of the weight vectors before and after, as a torchmetrics Metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gc.measuring.measurement import Measurement


class GradientMeans(Metric):
    r"""The means of weight vectors before and after they were centralized.

    For weight vectors :math:`i` of fan-in :math:`n_i` with means :math:`\mu_i`, out of a gradient
    :math:`g` (all over the updates since the last reset, and over the ranks):

    - ``mean_pre``: the mean over weight vectors of :math:`|\mu_i|` before;
    - ``mean_post``: the same, measured after;
    - ``removed_norm``: :math:`\sqrt{\sum_i n_i |\mu_i|^2} / \lVert g \rVert`, the share of the gradient's
      norm that was removed, between 0 and 1. Left out if no update came with a norm.

    A plain ``gradient.mean()`` would mislead: the signed means of the rows cancel.

    Args:
        names: The names of the parameters, to also get ``mean_pre/<name>`` and so on for each of them.
            Empty: the totals alone.
        kwargs: The arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: A name is given twice.

    Example:
        >>> import torch
        >>> from lightning_gc import GradientMeans, centralize
        >>> gradient = torch.tensor([[1.0, 3.0], [-2.0, -2.0]])
        >>> centralized = centralize(gradient)
        >>> means = GradientMeans()
        >>> means.update(gradient.mean(1), centralized.mean(1), fan_in=2, squared_norm=gradient.square().sum())
        >>> {name: round(value.item(), 4) for name, value in means.compute().items()}
        {'mean_pre': 2.0, 'mean_post': 0.0, 'removed_norm': 0.9428}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    vectors: Tensor
    sum_before: Tensor
    sum_after: Tensor
    squared_removed: Tensor
    squared_norm: Tensor

    def __init__(self, names: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(set(names)) != len(names):
            raise ValueError(f"names={names!r} must be distinct.")
        self.names = tuple(names)
        self._has_norm = False
        for state in ("vectors", "sum_before", "sum_after", "squared_removed", "squared_norm"):
            self.add_state(state, torch.zeros(max(1, len(names))), dist_reduce_fx="sum")

    def update(
        self,
        before: Tensor,
        after: Tensor,
        fan_in: Tensor | int,
        squared_norm: Tensor | None = None,
        parameter: Tensor | None = None,
    ) -> None:
        """Add the weight vectors of one step.

        Nothing is read on the host: on a GPU this only queues work.

        Args:
            before: The means of V weight vectors before, shape ``(V,)``, real or complex.
            after: The means of the same weight vectors after, shape ``(V,)``.
            fan_in: The fan-in of each weight vector, shape ``(V,)``, or one number for all.
            squared_norm: The squared norm of the whole gradient before: a scalar, or of each parameter,
                shape ``(P,)``.
            parameter: The index in `names` of the parameter of each weight vector, integers of shape
                ``(V,)``. Not needed, and not looked at, with fewer than two names.

        Raises:
            ValueError: `parameter` is missing although there are several names, or `squared_norm` does not
                have one element for each of them.
        """
        if parameter is None and len(self.names) > 1:
            raise ValueError(
                f"GradientMeans has {len(self.names)} names, so update() needs `parameter`: an index into "
                "them for each of the weight vectors."
            )
        if squared_norm is not None and len(self.names) > 1 and squared_norm.shape != (len(self.names),):
            raise ValueError(
                f"GradientMeans has {len(self.names)} names, so squared_norm must have the shape ({len(self.names)},), "
                f"one element for each of them, got {tuple(squared_norm.shape)}."
            )
        before, after = before.abs().to(self.sum_before), after.abs().to(self.sum_after)
        sums = (torch.ones_like(before), before, after, fan_in * before.square())
        for state, values in zip(self._states(), sums, strict=False):
            if parameter is None or not self.names:
                state += values.sum()
            else:
                state.index_add_(0, parameter, values)
        if squared_norm is not None:
            self._has_norm = True
            self.squared_norm += squared_norm if self.names else squared_norm.sum()

    def compute(self) -> dict[str, Tensor]:
        """The values by name: the totals and, if `names` were given, those of each parameter.

        A parameter without weight vectors since the last reset has the value zero.
        """
        if self._is_synced and not self._has_norm:  # the other ranks may have had something to measure
            self._has_norm = bool(self.squared_norm.any())
        measurement = Measurement(*self._states())
        return (measurement if self._has_norm else measurement._replace(squared_norm=None)).values(self.names)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric, or of its state.

        Args:
            incoming_state: A metric with the same names, or its `metric_state`.
        """
        super().merge_state(incoming_state)
        state = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        self._has_norm = self._has_norm or bool(torch.as_tensor(state["squared_norm"]).any())
        self._computed = None

    def reset(self) -> None:
        """Forget all updates."""
        super().reset()
        self._has_norm = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the values, or several of them over time (needs matplotlib).

        Args:
            val: What :meth:`compute` returned, or a list of such results, one for each step. By default
                the present values.
            ax: A matplotlib axis to draw on.

        Returns:
            The figure and the axis.
        """
        return self._plot(val, ax)

    def _states(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.vectors, self.sum_before, self.sum_after, self.squared_removed, self.squared_norm
