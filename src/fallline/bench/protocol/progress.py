"""The progress of a race, as its coordinator knows it and a display shows it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fallline.bench.protocol.comparison import ContenderResult
from fallline.bench.protocol.design import DEFAULTS, Design
from fallline.bench.protocol.records import Place


@dataclass
class RaceProgress:
    """The state of a race."""

    design: Design
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The description of each task: see `Task.describe`."""

    results: dict[tuple[str, str], dict[str, ContenderResult]] = field(default_factory=dict)
    """The results by task and track, then by optimizer."""

    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    """By task, the optimizers that do not take part, and why."""

    reused: int = 0
    """Runs that were in the records already."""

    ran: int = 0

    @property
    def total(self) -> int:
        """Runs in the race, as far as can be known."""
        return sum(result.runs_wanted for results in self.results.values() for result in results.values())

    @property
    def done(self) -> int:
        """Runs whose outcome is known."""
        return self.reused + self.ran

    def contenders(self) -> Iterator[tuple[str, str, list[ContenderResult]]]:
        """Task, optimizer and its results, one a track, in the order of the design."""
        for task in self.design.tasks:
            for name in self.design.optimizers:
                tracks = [self.results.get((task, track), {}).get(name) for track in self.design.tracks]
                if some := [result for result in tracks if result is not None]:
                    yield task, name, some

    def result(self, place: Place) -> ContenderResult:
        """The result that a run at this place belongs to."""
        track = "defaults" if place.stage == DEFAULTS else "tuned"
        return self.results[place.task, track][place.optimizer]
