"""KOALA: training as Kalman filtering, one variant a file.

Imports the library's base (`_optimizer`, `_loss`, `_group`, `_settings`, `_shards`, `kernels`, `_engine`), and no other
method.
"""

from .base import KOALA
from .metric import MetricKOALA, OrthogonalKOALA
from .momentum import MomentumKOALA
from .plus_plus import KOALAPlusPlus
from .vanilla import VanillaKOALA

__all__ = ["KOALA", "KOALAPlusPlus", "MetricKOALA", "MomentumKOALA", "OrthogonalKOALA", "VanillaKOALA"]
