"""KOALA: training as Kalman filtering."""

from .base import KOALA
from .metric import MetricKOALA, OrthogonalKOALA
from .momentum import MomentumKOALA
from .plus_plus import KOALAPlusPlus
from .vanilla import VanillaKOALA

__all__ = ["KOALA", "KOALAPlusPlus", "MetricKOALA", "MomentumKOALA", "OrthogonalKOALA", "VanillaKOALA"]
