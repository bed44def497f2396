"""The callback: its arguments, and which of Lightning's hooks it acts in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import takewhile
from typing import Any, Literal, Union, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gc.engines.target import Target
from lightning_gc.selection import Selection
from lightning_gc.selection.filters import parse_fan_in_dims, parse_filters
from lightning_gc.training.fit import Fit, Settings
from lightning_gc.training.strategies import check_strategy

_LogMeans = Literal["off", "total", "per_parameter"]
LogMeans = Union[_LogMeans, Literal[False]]  # YAML reads an unquoted `off` as False

# The class first: jsonargparse tries the members in order, and would leave "torch.nn.Embedding" a string.
Filters = Union[type[nn.Module], str, Sequence[Union[type[nn.Module], str]]]


class GradientCentralization(Callback):
    r"""Subtract from the gradient of every weight vector its mean, before each optimizer step.

    Gradient Centralization (Yong et al., 2020, `arXiv 2004.01461 <https://arxiv.org/abs/2004.01461>`_,
    equation 1): a weight vector is the incoming weights of one output unit, and its gradient :math:`g`
    becomes :math:`g - \frac{1}{n}\sum_i g_i`. Biases and normalisation layers are left alone.

    Args:
        include: Module classes and/or name globs of what is centralized; empty: everything eligible. A
            class takes every parameter in a module of that class, at any depth. A glob takes a
            parameter when it matches its qualified name or that of any module around it: ``"head"``
            and ``"head.*"`` both take ``head.weight``.
        exclude: The same, of what is not; `exclude` wins over `include`. A class here that the model does
            not have is named in the line at the start, and no more, so that one config serves several models.
        target: What is centralized: ``"gradient"``, before clipping, as ``chain(centralize(), clip, adam)``
            in optax; ``"clipped_gradient"``, after clipping; or ``"update"``, what the optimizer
            adds to the weights, decay and momentum included.
        fan_in_dims: ``{name glob: dims}``: the dims that one weight vector spans, such as
            ``{"*.experts.down_proj": 2}``. It overrides what is known of layers, what autograd's graph of the first
            losses shows of those that are not known, and what is assumed where it can't be read.
        log_means: Log the means of the weight vectors before and after on the steps that the Trainer
            logs: ``"off"`` (or False), the ``"total"`` (``gc/mean_pre``, ``gc/mean_post``,
            ``gc/removed_norm``), or also ``"per_parameter"``.
        log_prefix: The prefix of the logged names.

    Raises:
        MisconfigurationException: An argument is not allowed (at construction); a glob matches
            nothing, or nothing in `include` does; dims do not fit, or the filters leave nothing to centralize (when
            fit starts).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_gc import GradientCentralization
        >>> trainer = Trainer(callbacks=[GradientCentralization(exclude="head")], accelerator="cpu", logger=False)
        >>> trainer.callbacks[0]
        GradientCentralization(exclude='head')
    """

    def __init__(
        self,
        include: Filters = (),
        exclude: Filters = (),
        target: Target = "gradient",
        fan_in_dims: Mapping[str, Union[int, Sequence[int]]] = {},
        log_means: LogMeans = "total",
        log_prefix: str = "gc",
    ) -> None:
        super().__init__()
        include, exclude, fan_in_dims = _own(include), _own(exclude), _own(fan_in_dims)
        log_means = "off" if log_means is False else log_means
        _check_choice("target", target, get_args(Target))
        _check_choice("log_means", log_means, get_args(_LogMeans))
        if not isinstance(log_prefix, str) or not log_prefix:
            raise MisconfigurationException(
                f"GradientCentralization(log_prefix={log_prefix!r}): it must be a non-empty string, such as 'gc'."
            )
        try:
            self._settings = Settings(
                include=parse_filters(include, "include"),
                exclude=parse_filters(exclude, "exclude"),
                target=target,
                fan_in_dims=parse_fan_in_dims(fan_in_dims),
                log_means=log_means,
                log_prefix=log_prefix,
            )
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"GradientCentralization: {error}") from error
        self._arguments = {
            "include": include,
            "exclude": exclude,
            "target": target,
            "fan_in_dims": fan_in_dims,
            "log_means": log_means,
            "log_prefix": log_prefix,
        }
        self._fit: Fit | None = None
        self._kept: Selection | None = None

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in signature(GradientCentralization).parameters.items()}
        # An empty list, which LightningCLI passes for the default, is none that the user passed.
        shown = [f"{name}={_source(v)}" for name, v in self._arguments.items() if v and v != defaults[name]]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """The arguments alone: a copy or pickle of the callback takes neither model nor optimizers along."""
        # Lightning gives every callback the model's bound methods `log` and `log_dict`.
        kept = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return {**kept, "_fit": None, "_kept": None}

    @property
    def selection(self) -> Selection | None:
        """Which parameters are centralized, over which dims, and why the others are not; None before the first fit.

        After a fit it is kept to be read, without the parameters themselves: it keeps no model alive.
        """
        return self._fit.selection if self._fit else self._kept

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Refuse Fabric, which calls this of its callbacks, and nothing before an optimizer steps."""
        raise MisconfigurationException(
            f"{self!r} would do nothing in Fabric(callbacks=...): Fabric calls no callback before an optimizer steps. Take "
            "it out, and call lightning_gc.attach(optimizer, module) after fabric.setup(...)."
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, a strategy whose gradients cannot be seen."""
        if stage == "fit":
            check_strategy(trainer, self._settings.target)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select the parameters, print one line about it, and put the target's hooks in place."""
        self._end()
        self._kept = None
        is_listed = partial(_is_listed, self, trainer)
        # A callback that another one delegates to never stands in the list, and is always active.
        self._fit = Fit(self._settings, trainer, pl_module, is_listed if is_listed() else lambda: True)
        self._fit.announce(repr(self))
        for other in _listed_before(self, trainer):
            if isinstance(other, GradientCentralization) and self._logs_as(other):
                self._fit.remark_on_shared_prefix(repr(self), repr(other))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on optimizers that were replaced between epochs."""
        if self._fit:
            self._fit.hook_optimizers()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Bring the selection up to date with what was unfrozen between epochs, by any callback or the module.

        And note what is there before the batch, to notice when nothing of it is centralized; and let compiled modules show
        their graph where it is to be read.
        """
        if self._fit:
            self._fit.before_batch(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the user when parameters moved and nothing was centralized, and let compiled modules run compiled again."""
        if self._fit:
            self._fit.after_batch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the user when parameters moved in steps that were not seen."""
        if self._fit:
            self._fit.after_epoch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Read off the graph of the first losses over which dims layers sum that are not known."""
        if self._fit:
            self._fit.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there should be gradients now: a `training_step` that returns None leaves none."""
        if self._fit:
            self._fit.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Centralize the gradients of `optimizer`, which are unscaled by now, and not clipped yet."""
        if self._fit:
            self._fit.before_step(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the selection up to date a last time, since it is kept, and say what could not be read until the end."""
        if self._fit:
            self._fit.look_again()
            self._fit.end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the optimizers and let go of the model."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same after an exception, when Lightning does not call `teardown`."""
        self._end()

    def _logs_as(self, other: GradientCentralization) -> bool:
        ours, theirs = self._settings, other._settings
        return ours.log_prefix == theirs.log_prefix and "off" not in (ours.log_means, theirs.log_means)

    def _end(self) -> None:
        if self._fit:
            self._fit.close()
            self._kept = self._fit.selection.without_parameters()
        self._fit = None


def _is_listed(callback: Callback, trainer: Trainer) -> bool:
    return any(other is callback for other in trainer.callbacks)  # type: ignore[attr-defined]


def _listed_before(callback: Callback, trainer: Trainer) -> Iterable[Callback]:
    return takewhile(lambda other: other is not callback, trainer.callbacks)  # type: ignore[attr-defined]


def _check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        listed = ", ".join("'off' (or False)" if choice == "off" else repr(choice) for choice in allowed)
        raise MisconfigurationException(f"GradientCentralization({name}={value!r}): allowed are {listed}.")


def _own(value: Any) -> Any:
    """A copy of a container, so that the callback does not change with what it was given."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | str | bytes | type):
        return value
    return list(value) if isinstance(value, Iterable) else value


def _source(value: Any) -> str:
    """The source code of an argument."""
    if isinstance(value, type):
        public = getattr(nn, value.__name__, None) is value
        return f"torch.nn.{value.__name__}" if public else f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list):
        return f"[{', '.join(map(_source, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_source, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
