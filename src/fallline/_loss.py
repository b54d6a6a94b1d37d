"""How a loss-aware optimizer learns the loss: an argument, a closure, or a tap on the loss tensor itself.

The tap is a hook on the loss tensor. Backward calls it with the gradient g that reaches the loss, and since
``p.grad`` is the sum of g times the loss's gradient, the sum of g times the loss is the value of the very
objective whose gradient lies in ``p.grad``: under accumulation, loss / k, or partial losses alike.
"""

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.modules.loss import _Loss
from torch.utils.hooks import RemovableHandle

from ._optimizer import Optimizer, _precision, within
from ._shards import mean_over_ranks

FOUR_WAYS = (
    "this optimizer needs the loss that the gradients belong to. Four ways to give it: step(loss=loss) after "
    "backward; step(closure), where the closure returns it; optimizer.observe(loss) before backward; or once, before "
    "training, optimizer.attach(model or criterion)"
)


class LossAware(Optimizer):
    """An optimizer that reads the loss as well as the gradients.

    ``step`` takes it from the tap (:meth:`observe`, :meth:`attach`), else from ``loss=``, else from the closure.
    """

    _tapped: Tensor | None = None  # sums of g, g l and g l^2 since the last step; [3]
    _scaler: torch.amp.GradScaler | None = None
    _alone = False  # whether the batch is this process's own, whatever other ranks there are
    _ranks: "dist.ProcessGroup | None" = None  # those that share the batch; None: all
    _last: "weakref.ref[Tensor] | None" = None  # the loss observed last: a model and its criterion may both be attached

    def observe(self, loss: Tensor) -> Tensor:
        """Watch a loss that ``backward`` will be called on, and return it.

        Args:
            loss: a scalar, or one loss per example (any shape) whose mean or sum ``backward`` is called on; only the
                latter tells the optimizer how losses vary within a batch. Call it for each micro-batch. A loss and a
                mean of it, both observed, would count twice.
        """
        if loss.requires_grad and (self._last is None or self._last() is not loss):
            self._last = weakref.ref(loss)
            if self._tapped is not None and self._no_gradients() and torch._C._current_graph_task_id() == -1:
                # Left over from a step that never came, such as one that GradScaler skipped. Within backward it is not:
                # torch.utils.checkpoint runs the forward pass again there.
                self._tapped = None
            value = loss.detach()
            loss.register_hook(lambda g: self._tap(value, g))
        return loss

    def attach(self, module: torch.nn.Module, get: Callable[[Any], Tensor] | None = None) -> RemovableHandle:
        """Watch the loss in every training forward pass of a model or of a criterion.

        Args:
            module: a model whose output has ``loss`` (attribute or key), or a criterion, whose output is the loss.
            get: takes the loss out of the module's output where it lies elsewhere.

        Returns:
            A handle; ``handle.remove()`` ends it. Copies and pickles of the module are not attached.

        Raises:
            ValueError: in the forward pass, when the output holds no loss that can be told from other outputs.
        """
        return module.register_forward_hook(_Tap(self, get))

    def set_grad_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tell which scaler multiplies the watched losses, so that its scale can be divided out of the tap.

        One that takes the step itself, as ``scaler.step(optimizer)``, need not be told.
        """
        self._scaler = scaler

    def set_process_group(self, group: "dist.ProcessGroup | None") -> None:
        """Tell over which ranks the batch is spread, and the loss to be averaged: without a call, over all ranks.

        Args:
            group: those ranks; None where each process trains a model of its own.
        """
        self._alone, self._ranks = group is None, group

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._tapped = None

    @_disable_dynamo
    @torch.no_grad()
    def _tap(self, value: Tensor, g: Tensor) -> None:
        value, g = (t.to(dtype=_precision(t.device)) for t in (value, g))
        sums = torch.stack([g.sum(), (g * value).sum(), (g * value.square()).sum()])
        self._tapped = sums if self._tapped is None else self._tapped + sums

    def _moments(self, like: Tensor, loss: Any, loss_var: Any = None) -> tuple[Tensor, Tensor] | None:
        """Mean of the loss and of its square over the batch, and over the ranks: 0-D tensors like ``like``, or None."""
        tapped, self._tapped = self._tapped, None
        if tapped is not None:
            scaler = self._scaler or within(torch.amp.GradScaler, "_maybe_opt_step")
            if scaler is not None and scaler.is_enabled():
                tapped = tapped / scaler.scale(torch.ones_like(tapped))
            weight, mean, square = tapped.to(like).unbind()
        elif loss is None:
            return None
        else:
            losses = _like(loss, like)
            if not losses.numel():
                raise ValueError("the loss is empty: a scalar or one loss per example is needed")
            weight, mean, square = torch.ones_like(like), losses.mean(), losses.square().mean()
        if loss_var is not None and tapped is None:
            square = _like(loss_var, like)
        sums = torch.stack([weight, mean, square])
        if not self._alone:  # data parallel training averages the gradients of the ranks: so the sums belong to them
            sums = mean_over_ranks(sums, self._ranks)
        weight, mean, square = sums.unbind()
        return mean, weight * square  # on the scale of mean^2 whether g is 1/k, or 1 on losses or parts of one

    def _no_gradients(self) -> bool:
        return all(p.grad is None for group in self.param_groups for p in group["params"])


def _like(value: Any, like: Tensor) -> Tensor:
    """A number or tensor in the precision and on the device of ``like``."""
    if isinstance(value, int | float):
        return torch.full_like(like, value)  # a copy from the host would wait for the device
    return torch.as_tensor(value).detach().to(like)


def all_zero(groups: list[SimpleNamespace]) -> bool:
    """Whether every gradient is zero. Reads the device: only where an error would follow."""
    return not any(bool(g.any()) for t in groups for g in t.grads)


class Attachment:
    """A hook of a module that knows its optimizer weakly, so that a model can be copied and pickled without it."""

    def __init__(self, optimizer: Any = None) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)

    @property
    def optimizer(self) -> Any:
        """None when it is no more, or in a copy."""
        return None if self._optimizer is None else self._optimizer()

    def __deepcopy__(self, memo: Any) -> "Attachment":
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()


class _Tap(Attachment):
    """A forward hook that shows the loss to the optimizer."""

    def __init__(self, optimizer: Any = None, get: Callable[[Any], Tensor] | None = None) -> None:
        super().__init__(optimizer)
        self.get = get

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        optimizer = self.optimizer
        if optimizer is not None and torch.is_grad_enabled():
            loss = _loss_of(module, output) if self.get is None else self.get(output)
            if loss is not None:
                optimizer.observe(loss)


def _loss_of(module: torch.nn.Module, output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        if output.dim() == 0 or isinstance(module, _Loss):
            return output
    elif isinstance(output, dict) and "loss" in output:
        loss: Tensor | None = output["loss"]
        return loss
    elif hasattr(output, "loss"):
        found: Tensor | None = output.loss
        return found
    what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"attach: the output of {type(module).__name__} is {what}, in which no loss is found; "
        "pass get=lambda output: ... or attach the criterion"
    )
