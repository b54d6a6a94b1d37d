"""Optimizers for PyTorch that come from physics and estimation.

The library imports torch and the standard library alone; nothing in it knows `fallline.bench` or `fallline.papers`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._optimizer import Optimizer
    from ._registry import create_optimizer, list_optimizers
    from .arturo.arturo import ArTuRO
    from .coolmomentum import CoolMomentum
    from .koala.base import KOALA
    from .koala.metric import MetricKOALA, OrthogonalKOALA
    from .koala.momentum import MomentumKOALA
    from .koala.plus_plus import KOALAPlusPlus
    from .koala.vanilla import VanillaKOALA
    from .lodo.lodo import LODO

__version__ = "0.1.0"
__all__ = [
    "KOALA",
    "LODO",
    "ArTuRO",
    "CoolMomentum",
    "KOALAPlusPlus",
    "MetricKOALA",
    "MomentumKOALA",
    "Optimizer",
    "OrthogonalKOALA",
    "VanillaKOALA",
    "create_optimizer",
    "list_optimizers",
]
_HOMES = {
    "Optimizer": "_optimizer",
    "create_optimizer": "_registry",
    "list_optimizers": "_registry",
    "ArTuRO": "arturo.arturo",
    "CoolMomentum": "coolmomentum",
    "KOALA": "koala.base",
    "MetricKOALA": "koala.metric",
    "OrthogonalKOALA": "koala.metric",
    "MomentumKOALA": "koala.momentum",
    "KOALAPlusPlus": "koala.plus_plus",
    "VanillaKOALA": "koala.vanilla",
    "LODO": "lodo.lodo",
}
"""The modules of the public names. Each is imported when it is asked for: `fallline --help` does without torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
