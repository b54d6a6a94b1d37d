"""arTuRO: weights as a Gaussian, each step bounded by a KL trust region."""

from .arturo import ArTuRO

__all__ = ["ArTuRO"]
