"""Optimizers by name: ours, torch's, or anybody's."""

import difflib
import importlib
from typing import Any

import torch

from ._optimizer import Params
from .arturo import ArTuRO
from .coolmomentum import CoolMomentum
from .koala_m import MomentumKOALA
from .koala_metric import MetricKOALA, OrthogonalKOALA
from .koala_pp import KOALAPlusPlus
from .koala_v import VanillaKOALA
from .lodo import LODO

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
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"no optimizer {name!r}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
            raise ValueError(f"no optimizer {name!r}: it is no subclass of torch.optim.Optimizer")
        return found
    known = {**_torchs(), **{found.__name__.lower(): found for found in OURS.values()}, **OURS}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; fallline.list_optimizers() has the names"
        raise ValueError(f"no optimizer {name!r}{hint}")
    return known[name.lower()]


def _torchs() -> dict[str, type[torch.optim.Optimizer]]:
    classes = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {
        name: value
        for name, value in sorted(classes.items())
        if issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
