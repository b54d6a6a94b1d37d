"""Optimizers for PyTorch that come from physics and estimation."""

from ._optimizer import Optimizer
from ._registry import create_optimizer, list_optimizers
from .arturo import ArTuRO
from .coolmomentum import CoolMomentum
from .koala import KOALA
from .koala_m import MomentumKOALA
from .koala_metric import MetricKOALA, OrthogonalKOALA
from .koala_pp import KOALAPlusPlus
from .koala_v import VanillaKOALA
from .lodo import LODO

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
