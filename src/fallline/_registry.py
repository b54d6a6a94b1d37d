"""Optimizers by name: ours, torch's, or anybody's."""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch

from ._optimizer import Params
from .arturo.arturo import ArTuRO
from .coolmomentum import CoolMomentum
from .koala.metric import MetricKOALA, OrthogonalKOALA
from .koala.momentum import MomentumKOALA
from .koala.plus_plus import KOALAPlusPlus
from .koala.vanilla import VanillaKOALA
from .lodo.lodo import LODO

OURS: dict[str, type[torch.optim.Optimizer]] = {
    "arturo": ArTuRO,
    "coolmomentum": CoolMomentum,
    "koala-m": MomentumKOALA,
    "koala-metric": MetricKOALA,
    "koala-orthogonal": OrthogonalKOALA,
    "koala-pp": KOALAPlusPlus,
    "koala-v": VanillaKOALA,
    "lodo": LODO,
}


def list_optimizers() -> list[str]:
    """Names that :func:`create_optimizer` knows: ours first, then those of ``torch.optim``, in lower case."""
    return [*OURS, *_torchs()]


def create_optimizer(name: str, params: Params, **kwargs: Any) -> torch.optim.Optimizer:
    """Make an optimizer by its name.

    Args:
        name: one of :func:`list_optimizers` or the name of its class, in any case, or ``"package.module:Class"``.
        params: parameters or parameter groups.
        kwargs: what the class takes.

    Raises:
        ValueError: no such name; the message has the nearest one, or why the class was not found.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> type(create_optimizer("koala-m", [w], lr=0.5)).__name__
        'MomentumKOALA'
    """
    return _find(name)(params, **kwargs)


def _find(name: str) -> type[torch.optim.Optimizer]:
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError, TypeError) as error:  # no such module, an empty name, a relative one
            unknown = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
            near = _near(module_name, _modules(module_name)) if unknown else ""
            raise ValueError(f"no optimizer {name!r}: {error}{near}") from error
        found: Any = getattr(module, class_name, None)
        if found is None:
            has = [key for key, value in vars(module).items() if _is_optimizer(value)]
            near = _near(class_name, has) or (f"; it has {', '.join(sorted(has))}" if has else "; it has no optimizer")
            raise ValueError(f"no optimizer {name!r}: the module {module_name} has no {class_name!r}{near}")
        if not _is_optimizer(found):
            raise ValueError(f"no optimizer {name!r}: it is no subclass of torch.optim.Optimizer")
        return found
    known = {**_torchs(), **{found.__name__.lower(): found for found in OURS.values()}, **OURS}
    if name.lower() not in known:
        raise ValueError(f"no optimizer {name!r}{_near(name, known) or '; fallline.list_optimizers() has the names'}")
    return known[name.lower()]


def _is_optimizer(value: object) -> TypeGuard[type[torch.optim.Optimizer]]:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def _near(name: str, known: Iterable[str]) -> str:
    """The name that somebody may have meant, as the end of a message; empty if none is near."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def _modules(name: str) -> list[str]:
    """The names that a module may be meant by: with the first part that is missing replaced by one that is there."""
    done, missing = "", name.split(".")
    path: Any = None
    while len(missing) > 1:
        there = importlib.util.find_spec(f"{done}{missing[0]}")
        if there is None or there.submodule_search_locations is None:
            break
        done, path = f"{done}{missing.pop(0)}.", there.submodule_search_locations
    rest = "".join(f".{part}" for part in missing[1:])
    return [f"{done}{one.name}{rest}" for one in pkgutil.iter_modules(path) if not one.name.startswith("_")]


def _torchs() -> dict[str, type[torch.optim.Optimizer]]:
    return {name.lower(): value for name, value in sorted(vars(torch.optim).items()) if _is_optimizer(value)}
