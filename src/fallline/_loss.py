"""How a loss-aware optimizer learns the loss: an argument, a closure, or the backward pass itself.

An attached optimizer listens to ``torch.autograd.backward``. What it is called on is, by construction, the objective
whose gradient a pass adds to ``p.grad``: under accumulation, loss / k, a penalty beside the loss, or partial losses
alike. A pass counts for an optimizer if it changed a gradient of it; ``autograd.grad`` changes none.

Losses that are watched one by one (``observe``, ``attach(module)``) say besides how they vary within the batch: a hook
takes the gradient g that reaches a loss, and the sums of g, g loss and g loss^2 are those of the batch's moments.
"""

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from ._engine.frames import within
from ._engine.torch_private import Criterion, disable_dynamo, in_backward, traced
from ._group import Group
from ._optimizer import G, Optimizer, Params, _precision
from ._settings import RunSettings
from ._shards import mean_over_ranks, whole

FOUR_WAYS = (
    "this optimizer needs the loss that the gradients belong to. Four ways to give it: once, before training, "
    "optimizer.attach(), which finds it in every backward pass; step(loss=loss) after backward; step(closure), where "
    "the closure returns it; or optimizer.observe(loss) before backward"
)


class LossAware(Optimizer[G]):
    """An optimizer that reads the loss as well as the gradients.

    ``step`` takes it from the backward passes (:meth:`attach`, :meth:`observe`), else from ``loss=``, else from the
    closure.
    """

    _losses: "Losses"
    _scaler: torch.amp.GradScaler | None = None
    _alone = False  # whether the batch is this process's own, whatever other ranks there are
    _ranks: "dist.ProcessGroup | None" = None  # those that share the batch; None: all

    def __init__(self, params: Params, defaults: dict[str, Any], **run: Unpack[RunSettings]) -> None:
        self._losses = Losses(self)
        super().__init__(params, defaults, **run)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_losses" not in vars(self):  # a copy, or out of a pickle: it has seen nothing
            self._losses = Losses(self)

    def attach(
        self, module: torch.nn.Module | None = None, get: Callable[[Any], Tensor] | None = None
    ) -> RemovableHandle:
        """Take the loss from every backward pass that reaches the parameters: what ``backward`` is called on.

        Args:
            module: may be left out. A criterion, whose output is the loss, or a model whose output has ``loss``
                (attribute or key): where that is one loss per example, the optimizer also learns how losses vary
                within a batch, in every forward pass that records gradients.
            get: takes the loss out of the module's output where it lies elsewhere.

        Returns:
            A handle; ``handle.remove()`` ends it. Copies and pickles of the module are not attached.

        Raises:
            ValueError: in the forward pass, when the output of ``module`` holds no loss that can be told from other
                outputs.
        """
        losses = self._losses
        losses.listen()
        if module is None:
            handle = RemovableHandle(losses.attached)
        else:
            handle = module.register_forward_hook(_Tap(losses.optimizer(), get))
            handle.extra_dict_ref += (weakref.ref(losses.attached),)
            leave_no_trace(module)
        losses.attached[handle.id] = handle.id
        return handle

    def observe(self, loss: Tensor) -> Tensor:
        """Watch a loss that ``backward`` will be called on, or that is part of it, and return it.

        Args:
            loss: a scalar, or one loss per example (any shape) whose mean or sum ``backward`` is called on; only the
                latter tells the optimizer how losses vary within a batch. Call it for each micro-batch.
        """
        if loss.requires_grad:
            self._losses.observing = True
            self._losses.observe(loss)
        return loss

    def set_grad_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tell which scaler multiplies the losses, so that its scale can be divided out of what backward sees.

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
        self._losses.forget()

    def _moments(self, like: Tensor, loss: Any, loss_var: Any = None) -> tuple[Tensor, Tensor] | None:
        """Mean of the loss and of its square over the batch, and over the ranks: 0-D tensors like ``like``, or None."""
        seen = self._losses.take()
        if seen is not None:
            scaler = self._scaler or within(torch.amp.GradScaler, "_maybe_opt_step")
            if scaler is not None and scaler.is_enabled():
                scale = scaler.scale(torch.ones_like(seen[0]))
                seen = seen / torch.stack([scale] * 4 + [torch.ones_like(scale), scale, scale.square()])
            total, *watched = seen.to(like).split([1, 3, 3])
            sums = torch.cat([total, watched[0] + watched[1]])
        elif loss is None:
            return None
        else:
            losses = _like(loss, like)
            if not losses.numel():
                raise ValueError("the loss is empty: a scalar or one loss per example is needed")
            mean = losses.mean()
            square = losses.square().mean() if loss_var is None else _like(loss_var, like)
            sums = torch.stack([mean, torch.ones_like(like), mean, square])
        if not self._alone:  # data parallel training averages the gradients of the ranks: so the sums belong to them
            sums = mean_over_ranks(sums, self._ranks)
        # A mean square is on the scale of mean^2 whether g is 1/k, or 1 on losses or parts of one. What backward was
        # called on beside the watched losses has no spread that is known; a difference of losses has none either.
        total, weight, mean, square = sums.unbind()
        least = total.square() if seen is not None or loss_var is None else torch.zeros_like(total)
        return total, torch.maximum(weight * square + (total.square() - mean.square()), least)

    def _why_no_loss(self) -> str:
        return self._losses.why_none() or FOUR_WAYS


class Losses:
    """What an optimizer has seen of the losses since its last step.

    Fabric and Lightning wrap an optimizer by a copy of its attributes: both then hold this one object.
    """

    def __init__(self, optimizer: LossAware[Any]) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.attached: OrderedDict[int, int] = OrderedDict()  # by the handle's number
        # Of the passes that reached the parameters: what backward was called on; of the losses that were watched, the
        # sums of g, g loss and g loss^2; of the passes without such, 1, loss and loss^2. [7]
        self.sums: Tensor | None = None
        self.mark: tuple[weakref.ref[Tensor], int] | None = None  # a gradient that the last of these passes left
        self.last: weakref.ref[Tensor] | None = None  # watched: a model and its criterion may both be attached
        self.observing = False  # whether its user watches losses, here or there
        self.shape: tuple[int, ...] | None = None  # of what backward was called on, where that is no single number

    @property
    def listening(self) -> bool:
        return bool(self.attached or self.observing)

    def listen(self) -> None:
        _listen()
        _LISTENING.add(self)

    @disable_dynamo
    def observe(self, loss: Tensor) -> None:
        if self.last is not None and self.last() is loss:
            return
        self.last = weakref.ref(loss)
        self.listen()
        value = loss.detach().clone()  # loss /= k writes to it
        loss.register_hook(unserializable_hook(lambda g: self._tap(value, g)))

    @torch.no_grad()
    def _tap(self, value: Tensor, g: Tensor) -> None:
        if not _PASSES:  # autograd.grad
            return
        value, g = (whole(t).to(_precision(t.device)) for t in (value, g))
        product = torch.where(g == 0, 0.0, g * value)  # a NaN that is masked is no part of the loss
        sums = torch.stack([g.sum(), product.sum(), torch.where(g == 0, 0.0, product * value).sum()])
        watched = _PASSES[-1].watched
        watched[self] = watched[self] + sums.to(watched[self].device) if self in watched else sums

    def forget(self) -> None:
        self.sums = self.mark = self.shape = None

    def take(self) -> Tensor | None:
        """The sums up to now, which are forgotten; within backward (a step in a hook) those of the pass as well."""
        sums, self.sums, self.mark = self.sums if self.shape is None else None, None, None
        if self.listening and _PASSES and in_backward():
            passing = _PASSES[-1]
            passing.taken.add(self)
            now = passing.sums(self)
            if now is not None:
                sums = now if sums is None else sums + now
        return sums

    # -- around a backward pass -------------------------------------------------------------------------------

    def gradients(self) -> list[Tensor | None]:
        optimizer = self.optimizer()
        return [] if optimizer is None else [p.grad for group in optimizer.param_groups for p in group["params"]]

    def begin(self, grads: list[Tensor | None]) -> None:
        """What was seen is left over if its gradients are gone: cleared by hand, or after a step that never came."""
        if self.sums is not None or self.shape is not None:
            there = [g for g in grads if g is not None]
            if not there:
                self.forget()
            elif (
                self.sums is not None
                and self.mark is not None
                and not any(g is self.mark[0]() and g._version == self.mark[1] for g in there)
            ):
                some = torch.stack([g.any() for g in map(whole, there)]).any()  # they may be zeros now
                self.sums = torch.where(some.to(self.sums.device), self.sums, 0.0)

    def end(self, passed: "_Pass", left: Tensor) -> None:
        """A pass has reached the parameters; ``left`` is a gradient that it left."""
        seen = passed.sums(self)
        if seen is None:
            self.shape = passed.shape
        else:
            self.sums = seen if self.sums is None else self.sums + seen.to(self.sums.device)
            self.mark = weakref.ref(left), left._version

    def why_none(self) -> str | None:
        """Why no loss is known though somebody asked for it, in words; None where nobody has."""
        if self.shape is not None:
            return (
                f"backward was called on a tensor of shape {self.shape}, with gradients given to it: that may be "
                "losses, or what another stage makes of them. Call optimizer.observe(losses) before, or step(loss=loss)"
            )
        if self.listening:
            return (
                "losses are watched (attach, observe), and yet none is known: since the last step or zero_grad() no "
                "backward pass has reached this optimizer's parameters. Their gradients come from elsewhere, such as "
                "autograd.grad, or were set by hand: give the loss as step(loss=loss)"
            )
        return None


class _Pass:
    """A call of backward: of what, and which watched losses it has come through."""

    def __init__(self, roots: tuple[Any, ...], grads: tuple[Any, ...]) -> None:
        self.value: Tensor | None = None
        self.shape: tuple[int, ...] | None = None
        self.watched: dict[Losses, Tensor] = {}
        self.taken: set[Losses] = set()  # by a step within the pass
        for root, g in zip(roots, grads, strict=True):
            if not isinstance(root, Tensor) or root.numel() != 1:
                self.value, self.shape = None, tuple(getattr(root, "shape", ()))
                break
            value = whole(root.detach()).to(_precision(root.device), copy=True).reshape(())
            value = value if g is None else value * g.detach().to(value).reshape(())
            self.value = value if self.value is None else self.value + value.to(self.value.device)

    def sums(self, losses: Losses) -> Tensor | None:
        """What the pass adds to the sums of an optimizer; None if it tells it nothing."""
        watched = self.watched.get(losses)
        if watched is None:
            if self.value is None:
                return None
            one = torch.ones_like(self.value)
            return torch.stack([self.value, *[one * 0] * 3, one, self.value, self.value.square()])
        total = watched[1] if self.value is None else self.value.to(watched.device)
        return torch.cat([total.reshape(1), watched, torch.zeros_like(watched)])


_LISTENING: "weakref.WeakSet[Losses]" = weakref.WeakSet()
_PASSES: list[_Pass] = []  # that are running, outermost ones alone
_CALLING = threading.local()


@functools.cache
def _listen() -> None:
    """Have backward tell what it is called on: torch has hooks for every gradient, but none that knows its loss."""
    plain = torch.autograd.backward

    @disable_dynamo
    @functools.wraps(plain)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        nested = getattr(_CALLING, "backward", False) or in_backward()
        if not _LISTENING or nested:  # nested: torch.utils.checkpoint goes on backward through a piece
            return plain(tensors, grad_tensors, *args, **kwargs)
        roots, grads = _row(tensors), None if grad_tensors is None else _row(grad_tensors)
        with _passing(roots, grads or (None,) * len(roots)):
            return plain(roots, grads, *args, **kwargs)

    torch.autograd.backward = backward


@contextmanager
def _passing(roots: tuple[Any, ...], grads: tuple[Any, ...]) -> Iterator[None]:
    """Around a call of backward: note what it is called on, and for which optimizers it counts."""
    passing = _Pass(roots, grads)
    before = []
    with torch.no_grad():
        for losses in [losses for losses in _LISTENING if losses.listening]:
            old = losses.gradients()
            losses.begin(old)
            before.append((losses, old, [-1 if g is None else g._version for g in old]))
    _CALLING.backward = True
    _PASSES.append(passing)
    try:
        yield
    finally:
        _PASSES.remove(passing)
        _CALLING.backward = False
    with torch.no_grad():
        for losses, old, versions in before:
            rows = zip(losses.gradients(), old, versions, strict=False)
            changed = (g for g, was, version in rows if g is not None and (g is not was or g._version != version))
            left = next(changed, None)
            if left is not None and losses not in passing.taken:
                losses.end(passing, left)


def _row(x: Any) -> tuple[Any, ...]:
    """The tensors of an argument that may be one, or many in any order of nesting that backward takes."""
    alone = isinstance(x, Tensor) or not hasattr(x, "__iter__") or hasattr(x, "_fields")
    return (x,) if alone else tuple(x)


def _like(value: Any, like: Tensor) -> Tensor:
    """A number or tensor in the precision and on the device of ``like``."""
    if isinstance(value, int | float):
        return torch.full_like(like, value)  # a copy from the host would wait for the device
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, device="cpu")
    tensor: Tensor = value
    return tensor.detach().to(like)


def all_zero(groups: Sequence[Group]) -> bool:
    """Whether every gradient is zero. Reads the device: only where an error would follow."""
    return not any(bool(g.any()) for t in groups for g in t.grads)


# -- hooks of modules ----------------------------------------------------------------------------------------


class Attachment:
    """A hook of a module that knows its optimizer weakly."""

    def __init__(self, optimizer: Any = None) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)

    @property
    def optimizer(self) -> Any:
        """None when it is no more, in a copy, and where the module is not run but traced or exported."""
        if self._optimizer is None or traced():
            return None
        return self._optimizer()

    @property
    def __name__(self) -> str:
        """Asked for by torch.jit.script, which compiles hooks or fails."""
        raise RuntimeError(
            "torch.jit.script cannot compile the hook of an optimizer (attach, follow): script copy.deepcopy(module), "
            "which has none, or remove() its handle first"
        )

    def __reduce__(self) -> Any:
        return type(self), ()


def leave_no_trace(module: torch.nn.Module) -> None:
    """Let copies and pickles of a module be without the hooks of optimizers: they need no fallline to be loaded."""
    itself: Any = weakref.ref(module)

    def reduce(protocol: Any) -> Any:
        module = itself()
        kind: Any = type(module)
        reduced = kind.__reduce_ex__(module, protocol)
        if len(reduced) > 2 and isinstance(reduced[2], dict):
            state = {name: _without_hooks(value) for name, value in reduced[2].items() if value is not reduce}
            reduced = (*reduced[:2], state, *reduced[3:])
        return reduced

    vars(module)["__reduce_ex__"] = reduce  # pickle and copy ask the object, not its class


def _without_hooks(value: Any) -> Any:
    if isinstance(value, dict) and any(isinstance(hook, Attachment) for hook in value.values()):
        return type(value)((key, hook) for key, hook in value.items() if not isinstance(hook, Attachment))
    return value


class _Tap(Attachment):
    """A forward hook that shows the loss to the optimizer."""

    def __init__(self, optimizer: Any = None, get: Callable[[Any], Tensor] | None = None) -> None:
        super().__init__(optimizer)
        self.get = get

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        optimizer = self.optimizer
        if optimizer is not None and torch.is_grad_enabled():
            loss = _loss_of(module, output) if self.get is None else self.get(output)
            if loss is not None and loss.requires_grad:
                optimizer._losses.observe(loss)


def _loss_of(module: torch.nn.Module, output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        if output.dim() == 0 or isinstance(module, Criterion):
            return output
    elif isinstance(output, dict) and "loss" in output:
        loss: Tensor | None = output["loss"]
        return loss
    elif hasattr(output, "loss"):
        found: Tensor | None = output.loss
        return found
    what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"attach: the output of {type(module).__name__} is {what}, in which no loss is found; call attach() without a "
        "module, attach the criterion, or pass get=lambda output: ..."
    )
