"""LODO: a preconditioner network that is learned while it optimizes."""

from .lodo import LODO

__all__ = ["LODO"]
