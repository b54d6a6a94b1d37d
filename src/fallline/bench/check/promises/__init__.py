"""All promises, in the order in which they are checked and shown.

Imports nothing of ours.
"""

from types import ModuleType

from fallline.bench.check.promises import contract, gradients, groups, learns, precision, processes, run, speed, state
from fallline.bench.check.promises._promise import Promise


def _of(module: ModuleType) -> list[Promise]:
    return [one for one in vars(module).values() if isinstance(one, Promise)]


GROUPS = {
    module.__name__.rpartition(".")[2]: _of(module)
    for module in (learns, contract, groups, gradients, state, run, precision, speed, processes)
}
"""The promises of each group."""

PROMISES = {one.path: one for promises in GROUPS.values() for one in promises}
"""Every promise by its full name."""
