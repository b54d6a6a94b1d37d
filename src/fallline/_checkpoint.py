"""Whether a checkpoint fits an optimizer: looked at as a whole before anything is loaded, refused in words."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def fitted(optimizer: Any, state_dict: Any) -> dict[str, Any]:
    """The checkpoint in the order of the optimizer's parameters, where both have names; nothing has changed.

    Raises:
        ValueError: it does not fit; the message names the parameter, and whose state it seems to be.
    """
    groups, states = _parts(optimizer, state_dict)
    _same_shape(optimizer, groups)
    groups = [_by_name(*pair) for pair in zip(optimizer.param_groups, groups, strict=True)]
    owners = _owners(optimizer, groups, states)
    states = optimizer._read(owners, states)
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        _settings(optimizer, number, group, saved)
    for name in optimizer._whole:
        if len({repr(saved[name]) for saved in groups if name in saved}) > 1:
            refuse(optimizer, f"the parameter groups differ in {name}, which is one for the whole optimizer")
    for i, (p, group, saved, called) in owners.items():
        if states.get(i):
            _state(optimizer, p, {**group, **saved}, states[i], called)
    return {**state_dict, "param_groups": groups, "state": states}


def refuse(optimizer: Any, why: str) -> Any:
    raise ValueError(f"{type(optimizer).__name__}.load_state_dict: {why}. Nothing was loaded")


def _parts(optimizer: Any, state_dict: Any) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Groups and states, after a look at their kinds."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        refuse(optimizer, 'a checkpoint is a dict with "state" and "param_groups"')
    groups, states = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups
    ):
        refuse(optimizer, '"param_groups" is a list of dicts, each with a list "params"')
    if not isinstance(states, Mapping) or not all(isinstance(state, Mapping) for state in states.values()):
        refuse(optimizer, '"state" is a dict that has a dict of tensors for each parameter')
    for i in (i for group in groups for i in group["params"]):
        if not isinstance(i, int | str):
            refuse(optimizer, f"a parameter is listed as {i!r}, where its number stands")
    return [dict(group) for group in groups], {i: dict(state) for i, state in states.items()}


def _same_shape(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    ours, theirs = ([len(group["params"]) for group in some] for some in (optimizer.param_groups, groups))
    if len(ours) != len(theirs):
        refuse(
            optimizer, f"it has a different number of parameter groups, {len(theirs)}; the optimizer has {len(ours)}"
        )
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            refuse(
                optimizer,
                f"parameter group {number} doesn't match: it has {other} parameters there, and {mine} in the optimizer",
            )


def _by_name(group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The saved group in the order of the optimizer's, where both name the same parameters."""
    ours, theirs = group.get("param_names"), saved.get("param_names")
    if not isinstance(theirs, list | tuple) or ours is None or list(ours) == list(theirs):
        return saved
    if len(theirs) != len(ours) or len(set(ours)) < len(ours) or set(map(str, theirs)) != set(ours):
        return {**saved, "param_names": ours}  # by order, as torch does: a model may have been renamed
    numbers = dict(zip(theirs, saved["params"], strict=True))
    return {**saved, "params": [numbers[name] for name in ours], "param_names": list(ours)}


def _owners(optimizer: Any, groups: list[dict[str, Any]], states: dict[Any, Any]) -> dict[Any, Any]:
    """By the checkpoint's number: the parameter, its group, the saved one, and what the parameter is called."""
    owners: dict[Any, Any] = {}
    numbers: dict[Tensor, Any] = {}
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        for place, (p, i) in enumerate(zip(group["params"], saved["params"], strict=True)):
            called = f"parameter {place} of group {number}"
            if "param_names" in group:
                called += f" ({group['param_names'][place]})"
            if (i in owners and owners[i][0] is not p) or numbers.setdefault(p, i) != i:
                refuse(optimizer, f"{called} and another are one and the same in only one of both")
            owners[i] = p, group, saved, called
    for i in states.keys() - owners.keys():
        refuse(optimizer, f"it has state for {i!r}, and no group lists such a parameter")
    return owners


def _settings(optimizer: Any, number: int, group: dict[str, Any], saved: dict[str, Any]) -> None:
    """Settings and shared numbers of a group."""
    fresh, names = optimizer._start(), [name for name in optimizer.defaults if name in group]
    missing = {name for name in names if name not in saved and not callable(group[name])}
    if missing:
        strangers = {name for cls in _known_classes() for name in _names(cls)} - set(group)
        if strangers & set(saved):
            refuse(optimizer, f"parameter group {number} has no {', '.join(sorted(missing))}{_whose(saved)}")
    try:
        optimizer._check({name: saved.get(name, group[name]) for name in names})
    except (ValueError, TypeError, RuntimeError) as error:
        refuse(optimizer, f"in parameter group {number}, {error}")
    for name, start in fresh.items():
        value = saved.get(name, group[name])
        if isinstance(start, str | bool):
            right = type(value) is type(start) and value in optimizer._words.get(name, (value,))
        else:
            number_like = isinstance(value, int | float) and not isinstance(value, bool)
            number_like = number_like and (isinstance(start, float) or isinstance(value, int))
            if number_like:
                saved[name] = type(start)(value)
            one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
            right = number_like or (one and value.is_floating_point() == isinstance(start, float))
        if not right:
            refuse(optimizer, f"in parameter group {number}, {name} is {_told(value)}; a new one has {_told(start)}")


def _state(optimizer: Any, p: Tensor, group: dict[str, Any], state: dict[str, Any], called: str) -> None:
    """The state of one parameter against that which the optimizer would make for it."""
    wanted, optional = optimizer._wanted(p, group, state)
    if not set(wanted) <= set(state) <= set(wanted) | set(optional):
        names = ", ".join(sorted(wanted)) or "none"
        refuse(
            optimizer, f"the state of {called} is {', '.join(map(str, state))}, and should be {names}{_whose(state)}"
        )
    for name, value in state.items():
        like = wanted[name] if name in wanted else optional[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            refuse(optimizer, f"{name} of {called} is {_told(value)}, and should be a tensor")
        if value.shape != like.shape:
            refuse(
                optimizer, f"{name} of {called} has the shape {tuple(value.shape)}, and should have {tuple(like.shape)}"
            )
        if not alike(value, like):
            refuse(optimizer, f"{name} of {called} is of {value.dtype}, and should be of {like.dtype}")


def alike(a: Tensor, b: Tensor) -> bool:
    """Both floating-point numbers, both complex, or both neither."""
    return a.is_floating_point() == b.is_floating_point() and a.is_complex() == b.is_complex()


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else f"of {type(value).__name__}"


def _known_classes(base: type = torch.optim.Optimizer) -> Iterator[type]:
    """All optimizers that this process knows: torch's, ours, anybody's."""
    cls: type
    for cls in base.__subclasses__():
        yield cls
        yield from _known_classes(cls)


def _names(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters) - {"params"}


# By a state that only these keep.
STATES = {
    "exp_avg_sq": "Adam, AdamW or a relative",
    "exp_avg": "Adam, AdamW or a relative",
    "momentum_buffer": "SGD, Muon or RMSprop",
    "square_avg": "RMSprop or Adadelta",
    "displacement": "CoolMomentum",
    "velocity": "MomentumKOALA",
    "innovation_variance": "KOALAPlusPlus",
    "momentum": "MetricKOALA or OrthogonalKOALA",
    "precision": "ArTuRO",
    "theta": "LODO",
    "bucket": "LODO",
    "sum": "Adagrad",
}


def _whose(found: Mapping[Any, Any]) -> str:
    """To whom a state, or a group with its settings, seems to belong: a clause, or nothing where that is not known."""
    by_state = next((who for name, who in STATES.items() if name in found and "params" not in found), None)
    if by_state is None and "params" in found:
        fit = {cls: len(_names(cls) & set(found)) - 2 * len(_names(cls) - set(found)) for cls in _known_classes()}
        best = max(fit, key=lambda cls: fit[cls])
        by_state = " or ".join(cls.__name__ for cls in fit if issubclass(cls, best)) if fit[best] > 0 else None
    return "" if by_state is None else f": it looks like that of {by_state}"
