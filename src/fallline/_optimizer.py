"""The base class: parameter groups, their state and the shared scalars in; lists of tensors for kernels out."""

import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, Unpack, get_args
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ._checkpoint import alike, fitted
from ._engine.frames import within
from ._engine.fused import Kernel, Misfit, Tensors
from ._engine.run import run
from ._engine.tape import name_of
from ._engine.torch_private import disable_dynamo, in_functorch
from ._group import RESERVED, Group, Shared
from ._settings import RUN, RunSettings, Signature, check, plain
from ._shards import _sharded, local, over_shards
from .kernels import squared_norms

G = TypeVar("G", bound=Group)
Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Optimizer(torch.optim.Optimizer, Generic[G]):
    """Base of all optimizers here: a :class:`torch.optim.Optimizer` in which a method is kernels and algebra.

    A method declares its state (:meth:`init_state`) and its shared scalars (:meth:`init_shared`), and writes
    its step once (:meth:`advance`) with two verbs: :meth:`each` maps a kernel over tensors, :meth:`sums` reduces
    each tensor to numbers that are complete over all shards. A step never reads a tensor's value on the host.

    Shared scalars are 0-D tensors on the parameters' device, float64 where it exists, and the *same* tensor in
    every parameter group, where they keep dtype and identity through ``deepcopy``, ``pickle`` and checkpoints.

    Args:
        params: tensors, named tensors, or parameter groups (dicts with ``params`` and settings of their own).
        defaults: settings of groups that do not give their own.

    Raises:
        ValueError: a setting outside its range; the message names it, its value and the range.
    """

    # Settings with one value for all groups.
    _whole: ClassVar[frozenset[str]] = frozenset({"skip_nonfinite", "stochastic_rounding", "fused"})
    _run_defaults: ClassVar[RunSettings] = {}  # run settings whose default is not False
    _words: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # what shared values that are words may be
    _separable = False  # whether a step on some of the parameters is that part of the step on all
    _group: type[Group] = Group  # the G of Optimizer[G]

    __signature__ = Signature()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in vars(cls).get("__orig_bases__", ()):
            cls._group = next((of for of in get_args(base) if isinstance(of, type)), cls._group)

    def __init__(self, params: Params, defaults: dict[str, Any], **run: Unpack[RunSettings]) -> None:
        if unknown := [name for name in run if name not in RUN]:
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}")
        run_settings = {**dict.fromkeys(RUN, False), **self._run_defaults, **defaults, **run}
        defaults = {**defaults, **{name: run_settings[name] for name in RUN}}
        zero: Any = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
        if (
            zero is not None
            and self._coupled(defaults)
            and within(zero.ZeroRedundancyOptimizer, "_init_local_optimizer")
        ):
            raise RuntimeError(
                f"{type(self).__name__} couples all parameters in a step (as skip_nonfinite does), and "
                "ZeroRedundancyOptimizer gives each rank some of them: shard the model with FSDP2 "
                "(torch.distributed.fsdp.fully_shard) instead"
            )
        super().__init__(params, {name: plain(value) for name, value in defaults.items()})

    # -- what a method writes ---------------------------------------------------------------------------------

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of one parameter, allocated with its group so that a checkpoint loader finds it."""
        return {}

    def _allocate(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """State of parameters that join a group. What raises here leaves the optimizer as it was."""
        with torch.no_grad():  # a copy of a parameter is no part of a graph
            fresh = {p: self.init_state(p, group) for p in params}
        for name, value in (item for state in fresh.values() for item in state.items()):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.init_state returns {name} as a {type(value).__name__}: state is tensors; "
                    "a number that belongs to one parameter is fallline.kernels.scalar_like(p)"
                )
        for names in {tuple(state) for state in fresh.values()}:
            self._check_names(names)
        self.state.update(fresh)

    def _check_names(self, state: Iterable[str] = ()) -> None:
        """Refuse one name for two things, of which a step would see one."""
        taken = dict.fromkeys(RESERVED | {"param_names"}, "what every group has")
        for kind, names in (("setting", self.defaults), ("shared scalar", self._start()), ("state", state)):
            for name in names:
                if name in taken:
                    raise ValueError(
                        f"{type(self).__name__} has a {kind} named {name!r}, and that is the name of {taken[name]}: "
                        "rename one of the two"
                    )
                taken[name] = f"a {kind}"

    def _start(self) -> dict[str, Any]:
        """All shared values at the start."""
        return {
            **self.init_shared(),
            "skipped": 0,
            **({"roundings": 0} if self.defaults["stochastic_rounding"] else {}),
        }

    def _wanted(self, p: Tensor, group: dict[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """What a checkpoint must have as the state of ``p``, and what it may have: tensors like these (on meta)."""
        try:
            like = p if _sharded(p) is not None else torch.empty_like(p, device="meta", requires_grad=False)
            return self.init_state(like, group), {}
        except (RuntimeError, NotImplementedError):  # a method that reads the parameter
            return self.init_state(p, group), {}

    def _listed(self, p: Tensor) -> Iterable[str]:
        """Names of the state that every parameter of a group has: ``advance`` finds them as lists."""
        return list(self.state[p])

    def _read(self, owners: dict[Any, Any], states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        """A checkpoint's states by number, as they are written today. ``owners``: parameter, group, saved, name."""
        return states

    def init_shared(self) -> dict[str, Any]:
        """Shared values at the start: floats and ints become device scalars, strings and bools stay as they are."""
        return {}

    def advance(self, groups: list[G], shared: Shared, loss: Any) -> None:
        """The step. ``groups`` have ``params``, ``grads``, lists of state by name, and the group's settings."""
        raise NotImplementedError(f"{type(self).__name__} has no advance(groups, shared, loss), which is its step")

    # -- the verbs it is written in ---------------------------------------------------------------------------

    def each(self, kernel: Kernel, t: Group, *lists: Any, **scalars: Any) -> None:
        """Run ``kernel`` over the group's parameters and the given lists (a 1-D tensor is a list of scalars)."""
        self._run(kernel, t, lists, scalars)

    def sums(self, kernel: Kernel, t: Group, *lists: Any, maxima: int = 0, **scalars: Any) -> tuple[Tensor, ...]:
        """The same, returning each sum that the kernel returns as a vector [tensors] in the scalars' precision.

        What the kernel returns must add up over the elements: squares and dot products, never norms. Only the last
        ``maxima`` of them are maxima.
        """
        sums = self._run(kernel, t, lists, scalars, maxima)
        if sums is None:
            raise RuntimeError(f"sums() needs a kernel that returns a tuple of sums: {name_of(kernel)} returns nothing")
        device = t.values["skipped"].device
        return over_shards(sums.to(device, _precision(device)), t.owners, maxima).unbind(1)

    def _run(
        self, kernel: Kernel, t: Group, lists: Sequence[Any], scalars: dict[str, Any], maxima: int = 0
    ) -> Tensor | None:
        try:
            return run(kernel, [t.params, *lists], scalars, t.fused, maxima, _salt(t))
        except Misfit as misfit:
            column, what = misfit.column, misfit.what
            if isinstance(column, int):
                x = [t.params, *lists][column]
                known = {id(t.values[name]): name for name in t.lists}
                known |= {id(t.params): "parameter", id(t.grads): "gradient"}
                column = known.get(id(x), f"argument {column} of {kernel.__name__}")
            raise RuntimeError(f"{type(self).__name__}: {column}{self._whose(t, misfit.tensor)} {what}") from None

    def _whose(self, t: Group, p: Tensor | None) -> str:
        """Which parameter of a group's view this is."""
        place = next((i for i, other in enumerate(t.params) if other is p), None)
        if place is None:
            return ""
        group, owner = self.param_groups[t.index], t.owners[place]
        number = next(i for i, other in enumerate(group["params"]) if other is owner)
        name = f" ({group['param_names'][number]})" if "param_names" in group else ""
        return f" of parameter {number}{name} in group {t.index}"

    def finite(self, groups: Sequence[Group]) -> Tensor:
        """0-D bool: no gradient holds a NaN or an infinity, or a norm whose square overflows."""
        return torch.cat([self.sums(squared_norms, t, t.grads)[0] for t in groups]).sum().isfinite()

    # -- torch.optim ------------------------------------------------------------------------------------------

    @property
    def skipped(self) -> Tensor:
        """Steps that a non-finite loss or gradient turned into nothing: 0-D int64 tensor on the device."""
        count: Tensor = self.param_groups[0]["skipped"]
        return count

    @disable_dynamo  # torch.compile(optimizer.step) would lose what is written to a group's tensors: see fused=True
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Perform one step.

        Args:
            closure: reevaluates the model with gradients enabled, calls ``backward()`` and returns the loss.
            loss: the loss that the gradients belong to; only loss-aware methods read it.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            RuntimeError: a gradient is sparse, parameters are on several devices, or this is within a transform of
                torch.func; nothing has moved.
            ValueError: a setting was changed to something outside its range, as ``lr`` by a schedule that ran past its
                end; nothing has moved. (A tensor's value is not read: an ``lr`` below 0 or not finite counts as 0.)
            TypeError: ``closure`` is no function, but perhaps the loss.
        """
        value = None
        if in_functorch():
            raise RuntimeError(
                "step() within torch.func: it changes parameters in place; step where the transform is done"
            )
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"step() takes a closure, not a {type(closure).__name__}; give a loss as step(loss=loss)"
                )
            with torch.enable_grad():
                value = closure()
        self._check_again()
        groups = self._groups(lambda p: p.grad is not None)
        if groups:
            self._round_anew()
            self._advance(groups, value if loss is None else loss)
        return value

    def _advance(self, groups: list[G], loss: Any) -> None:
        """One step, and a look at a method's first one: whether it skips what it was asked to skip."""
        shared = self._shared()
        asked = groups[0].skip_nonfinite and type(self) not in _SKIPPING and not shared.skipped.is_inference()
        before = shared.skipped._version if asked else 0
        self.advance(groups, shared, loss)
        if asked:
            if shared.skipped._version == before:
                raise RuntimeError(
                    f"{type(self).__name__} was made with skip_nonfinite=True and skips no step, for its advance() "
                    "does not write to shared.skipped: see docs/tutorial-new-optimizer.md, or leave it False"
                )
            _SKIPPING.add(type(self))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; they join the shared scalars at their present values.

        Raises:
            ValueError: a setting is outside its range, or differs from the optimizer's where it must not.
            RuntimeError: the parameters are pieces that FSDP's first version made.
        """
        param_group.update({name: plain(value) for name, value in param_group.items() if name in self.defaults})
        settings = {**self.defaults, **param_group}
        self._check(settings)
        if not self.param_groups:
            self._check_names()
        for name in self._whole:
            if settings[name] != self.defaults[name]:
                raise ValueError(
                    f"{name}={settings[name]!r} in a parameter group: it is one for the whole optimizer, "
                    f"here {self.defaults[name]!r}"
                )
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        if self._coupled(self.defaults) and any(getattr(p, "_fsdp_flattened", False) for p in params):
            self.param_groups.pop()
            raise RuntimeError(
                f"{type(self).__name__} needs sums over whole tensors, and FullyShardedDataParallel does not say which "
                "pieces belong together: use FSDP2 (torch.distributed.fsdp.fully_shard), whose parameters are DTensors"
            )
        group, first = self.param_groups[-1], self.param_groups[0]
        if group is first:
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            group.update({name: _scalar(value, device) for name, value in self._start().items()})
        else:
            group.update({name: first[name] for name in self._start()})
        try:  # a frozen parameter costs no memory, a lazy one has no shape: they get their state with a first gradient
            new = [p for p in dict.fromkeys(group["params"]) if p.requires_grad and not is_lazy(p)]
            self._allocate(new, group)
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """As in torch, without callables: ``torch.load(weights_only=True)`` reads it, the constructor's remain."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            for name in [name for name, value in group.items() if callable(value) and not isinstance(value, Tensor)]:
                del group[name]
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its own precision, and everything is copied from ``state_dict``.

        Where checkpoint and optimizer both have names for the parameters of a group, these decide, not the order.

        Raises:
            ValueError: the checkpoint does not fit. It is looked at before anything is loaded, and whatever is raised
                here leaves the optimizer as it was, to the bit.
        """
        before, itself = self.param_groups, dict(vars(self))
        loaded: dict[str, Any] = {}

        def take(_: Any, final: dict[str, Any]) -> dict[str, Any]:
            loaded.update(fitted(self, final))
            return loaded

        # torch casts state to the parameter's dtype: take it as it comes out of the user's hooks, and undo that.
        taking = self.register_load_state_dict_pre_hook(take)
        mending = self.register_load_state_dict_post_hook(lambda _: self._mend(before, loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            vars(self).clear()
            vars(self).update(itself)
            raise
        finally:
            taking.remove()
            mending.remove()

    def _mend(self, before: list[dict[str, Any]], loaded: Any) -> None:
        for group, old, saved in zip(self.param_groups, before, loaded["param_groups"], strict=True):
            for name, value in old.items():
                group.setdefault(name, value)
            for name in ("stochastic_rounding", "fused"):  # how to run, not what to compute: the constructor's
                group[name] = old[name]
            for i, p in zip(saved["params"], group["params"], strict=True):
                state = loaded["state"].get(i)
                wanted, optional = self._wanted(p, group, state or {})
                if state is None or (not state and wanted and p.numel()):
                    self.state.pop(p, None)  # it gets its state with its first gradient
                    continue
                self.state[p] = {
                    name: value.to(p.device, (wanted if name in wanted else optional)[name].dtype, copy=True)
                    for name, value in state.items()
                }
        devices = [p.device for group in self.param_groups for p in group["params"]]
        if devices:
            self._move(devices[0])

    # -- views ------------------------------------------------------------------------------------------------

    def _groups(self, select: Callable[[Tensor], bool]) -> list[G]:
        """The selected parameters, group by group, as local real tensors with their gradients and state."""
        # Python's share of a step: of a thousand tensors, every look at each of them is seen in the time.
        # What is listed twice counts once.
        chosen = [[p for p in dict.fromkeys(group["params"]) if select(p) and p.numel()] for group in self.param_groups]
        devices = {p.device for ps in chosen for p in ps}
        if len(devices) > 1:
            found = " and ".join(sorted(map(str, devices)))
            raise RuntimeError(f"{type(self).__name__} needs all parameters on one device, and finds them on {found}")
        graded = [[g for p in ps if (g := p.grad) is not None] for ps in chosen]
        for layout in {g.layout for gs in graded for g in gs} - {torch.strided}:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients (layout {layout})")
        views = []
        for i, (group, ps, gs) in enumerate(zip(self.param_groups, chosen, graded, strict=True)):
            if ps:
                if group["skipped"].device != ps[0].device:  # the model was moved after the optimizer was made
                    self._move(ps[0].device)
                fresh = [p for p in ps if p not in self.state]
                if fresh:
                    self._allocate(fresh, group)
                states = [self.state[p] for p in ps]
                self._follow_types(ps, states, group)
                real = not any(map(Tensor.is_complex, ps))
                state = {name: local([own[name] for own in states], real=real) for name in self._listed(ps[0])}
                lists = {"owners": ps, "params": local(ps, real=real), "grads": local(gs, ps, real=real)}
                if group["maximize"]:
                    lists["grads"] = [-g for g in lists["grads"]]
                settings, lr = dict(group), group.get("lr")
                if isinstance(lr, Tensor):  # not read on the host
                    settings["lr"] = torch.where((lr >= 0) & lr.isfinite(), lr, 0.0)
                if group["fused"]:
                    state = {name: self._as_known((i, name), ts) for name, ts in state.items()}
                    lists |= {name: self._as_known((i, name), lists[name]) for name in ("params", "grads")}
                view: Any = self._group(i, **lists, state=state, settings=settings)
                views.append(view)
        return views

    def _settings(self) -> list[G]:
        """The groups without their parameters: settings and shared scalars."""
        views: list[Any] = [self._group(i, [], [], [], {}, group) for i, group in enumerate(self.param_groups)]
        return views

    def _follow_types(self, ps: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
        """Convert the state of parameters whose dtype was changed, as ``model.double()`` does."""
        name = next(iter(self._listed(ps[0])), None)
        if name is None:
            return
        right: set[Any] = self.__dict__.setdefault("_types", set())
        for p, own in zip(ps, states, strict=True):
            kind = p.dtype, getattr(own[name], "dtype", None)
            if kind in right or kind[1] is None:  # what is no tensor is refused where it is used
                continue
            wanted, _ = self._wanted(p, group, own)
            stale = [n for n, like in wanted.items() if own[n].dtype != like.dtype and alike(own[n], like)]
            if stale:
                new = self.init_state(p.detach().to(own[name].dtype), group)
                if all(torch.equal(own[n], value) for n, value in new.items()):
                    own.update(self.init_state(p, group))  # nothing has been learned yet
                own.update({n: own[n].to(wanted[n].dtype) for n in stale})
            right.add((p.dtype, own[name].dtype))

    def _as_known(self, key: tuple[int | str, ...], ts: list[Tensor]) -> list[Tensor]:
        """The list of the last step if it holds the same tensors, so that they need not be looked at again."""
        kept: dict[tuple[int | str, ...], Tensors] = self.__dict__.setdefault("_kept", {})  # a copy begins anew
        old = kept.get(key)
        if old is None or len(old) != len(ts) or not all(map(operator.is_, old, ts)):
            old = Tensors(ts)
            old.stays = key[-1] != "grads"
            if old.stays:
                kept[key] = old
        return old

    def _shared(self) -> Shared:
        first = self.param_groups[0]
        return Shared({name: first[name] for name in self._start()})

    def _share(self, **values: Any) -> None:
        for group in self.param_groups:
            group.update(values)

    def _coupled(self, settings: dict[str, Any]) -> bool:
        """Whether a step needs all parameters, as decisions on them do."""
        return bool(not self._separable or settings["skip_nonfinite"])

    def _round_anew(self) -> None:
        """The coming step rounds to bfloat16 with other random numbers than the last."""
        if self.defaults["stochastic_rounding"]:
            self.param_groups[0]["roundings"].add_(1)

    def _move(self, device: torch.device) -> None:
        self._share(**{name: _scalar(value, device) for name, value in self._shared().values.items()})
        for p, state in self.state.items():
            self.state[p] = {name: value.to(p.device) for name, value in state.items()}

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse settings outside their range before anything has changed."""
        check(type(self), settings)

    def _check_again(self) -> None:
        """Refuse settings that were changed to something outside their range, before anything has moved."""
        checked: dict[int, list[Any]] = self.__dict__.setdefault("_checked", {})
        for number, group in enumerate(self.param_groups):
            names = [name for name in self.defaults if name in group]
            now, known = [group[name] for name in names], checked.get(number, ())
            if len(now) == len(known) and all(map(operator.is_, now, known)):
                continue
            group.update({name: plain(group[name]) for name in names})
            settings = {name: group[name] for name in names}
            if isinstance(settings.get("lr"), Tensor) and settings["lr"].numel() == 1:
                settings["lr"] = 0.0  # its value is not read
            try:
                self._check(settings)
            except ValueError as error:
                past = "; did a schedule run past its end?" if str(error).startswith("lr=") else ""
                raise ValueError(f"parameter group {number}: {error}{past}") from None
            checked[number] = [group[name] for name in names]


_SKIPPING: "WeakSet[type[Optimizer[Any]]]" = WeakSet()  # classes that were seen to skip


def _salt(t: Group) -> Tensor | None:
    return t.values["roundings"] if t.values["stochastic_rounding"] else None


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _scalar(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, _precision(device) if value.is_floating_point() else None)
    if isinstance(value, str | bool):
        return value
    return torch.tensor(value, device=device, dtype=_precision(device) if isinstance(value, float) else torch.int64)
