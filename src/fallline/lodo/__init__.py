"""LODO: a preconditioner network that is learned while it optimizes.

Imports the library's base (`_optimizer`, `_group`, `_settings`, `_shards`, `kernels`, `_engine`), and no other method.
"""

from .lodo import LODO

__all__ = ["LODO"]
