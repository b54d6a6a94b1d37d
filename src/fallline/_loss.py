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
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.modules.loss import _Loss
from torch.utils.hooks import RemovableHandle

from ._optimizer import Optimizer, _precision
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
            if self._tapped is not None and self._no_gradients():
                self._tapped = None  # left over from a step that never came, such as one that GradScaler skipped
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
        return module.register_forward_hook(_Attachment(self, get))

    def set_grad_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tell which scaler multiplies the watched losses, so that its scale can be divided out of the tap."""
        self._scaler = scaler

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
            if self._scaler is not None and self._scaler.is_enabled():
                tapped = tapped / self._scaler.scale(torch.ones_like(tapped))
            weight, mean, square = tapped.to(like)
            mean_square = weight * square  # on the scale of mean^2 whether g is 1/k, or 1 on losses or parts of one
        elif loss is None:
            return None
        else:
            losses = _like(loss, like)
            if not losses.numel():
                raise ValueError("the loss is empty: a scalar or one loss per example is needed")
            mean, mean_square = losses.mean(), losses.square().mean()
        if loss_var is not None and tapped is None:
            mean_square = _like(loss_var, like)
        mean, mean_square = mean_over_ranks(torch.stack([mean, mean_square])).unbind()
        return mean, mean_square

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


class _Attachment:
    """A forward hook that knows its optimizer weakly, so that a model can be copied and pickled without it."""

    def __init__(self, optimizer: LossAware | None = None, get: Callable[[Any], Tensor] | None = None) -> None:
        self.optimizer = None if optimizer is None else weakref.ref(optimizer)
        self.get = get

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        optimizer = None if self.optimizer is None else self.optimizer()
        if optimizer is not None and torch.is_grad_enabled():
            loss = _loss_of(module, output) if self.get is None else self.get(output)
            if loss is not None:
                optimizer.observe(loss)

    def __deepcopy__(self, memo: Any) -> "_Attachment":
        return _Attachment()

    def __reduce__(self) -> Any:
        return _Attachment, ()


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
