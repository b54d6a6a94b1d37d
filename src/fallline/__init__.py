"""Optimizers for PyTorch that come from physics and estimation.

The library imports torch and the standard library alone; nothing in it knows `fallline.bench` or `fallline.papers`.
"""

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
