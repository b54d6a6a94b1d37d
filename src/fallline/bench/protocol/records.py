"""What is written down of a race: its design and setting, and the place of each run in it."""

import dataclasses
from typing import Any, NotRequired, TypedDict

from fallline.bench.common.spaces import Setting


@dataclasses.dataclass(frozen=True)
class Place:
    """A run's place in a race: the `number`-th of its stage (`Stage` in `design.py`), of one optimizer on one task.

    In the stage `SELECTION`, `number` is the trial's and `repeat` counts its reruns.
    """

    task: str
    optimizer: str
    stage: str
    number: int
    repeat: int = 0


class TaskAbout(TypedDict):
    """The description of a task, see `Task.describe`; there may be more."""

    summary: str
    steps: float
    held_out: bool
    floor: float | None
    floor_name: NotRequired[str]
    equivalence: NotRequired[float | None]
    reference: NotRequired[tuple[float, str] | None]


class ContenderAbout(TypedDict):
    """The description of an optimizer, see `Contender.describe`; there may be more."""

    label: str
    ours: bool
    space: dict[str, str]
    fixed: dict[str, Setting]
    schedule: str
    source: NotRequired[str]
    ranges: NotRequired[dict[str, Any]]
    extended: NotRequired[dict[str, Any]]
    excuse: NotRequired[str]


class About(TypedDict):
    """The facts about a race that its report needs and its runs do not hold; there may be more."""

    command: NotRequired[str]
    environment: NotRequired[dict[str, str]]
    left_out: dict[str, dict[str, str]]
    tasks: NotRequired[dict[str, TaskAbout]]
    contenders: dict[str, dict[str, ContenderAbout]]


@dataclasses.dataclass(frozen=True)
class Race:
    """A race as it was written down."""

    id: str
    design: dict[str, Any]
    """The design as plain values: see `Design`."""

    setting: dict[str, Any]
    """Tasks, spaces, who was left out, command, machine: see `About`."""

    started_at: str
