"""arTuRO: weights as a Gaussian, each step bounded by a KL trust region.

Imports the library's base (`_optimizer`, `_group`, `_settings`, `_shards`, `kernels`), and no other method.
"""

from .arturo import ArTuRO

__all__ = ["ArTuRO"]
