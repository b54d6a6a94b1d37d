"""The optimizers of a race: how each is made, in which space it is searched, how its learning rate is scheduled.

Imports the library, `tasks` and `common`.
"""

from fallline.bench.contenders.contender import AnyOptimizer, Contender, Make, Team
from fallline.bench.contenders.entries import CONTENDERS, TEAM, plain
from fallline.bench.contenders.names import (
    ANY_LR,
    CLASSES,
    contenders,
    entered,
    get_contender,
    space_of,
    spelled,
    under_schedules,
)
from fallline.bench.contenders.schedules import DROPS, WARM_UP, Drops, lr_factor, parse_drops, spell_drops
from fallline.bench.contenders.step import Step, Words

__all__ = [
    "ANY_LR",
    "CLASSES",
    "CONTENDERS",
    "DROPS",
    "TEAM",
    "WARM_UP",
    "AnyOptimizer",
    "Contender",
    "Drops",
    "Make",
    "Step",
    "Team",
    "Words",
    "contenders",
    "entered",
    "get_contender",
    "lr_factor",
    "parse_drops",
    "plain",
    "space_of",
    "spell_drops",
    "spelled",
    "under_schedules",
]
