"""What shrinks LODO's state, and what each way costs on the noisy bowl. Ours; the paper has no such experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fallline.bench.common.numbers import describe, plural
from fallline.bench.common.spaces import Setting
from fallline.bench.runs.loop import state_bytes
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.bowl import DIMENSION, Bowl, Landscape
from fallline.papers.experiments._experiment import Case, Design, Done, Entry
from fallline.papers.experiments._problem import MAKERS, Problem, estimated, settings_of
from fallline.papers.experiments.lodo_bowl import TUNED, Chase
from fallline.papers.experiments.page import Page, Row, Section, Table, digits, lost_of
from fallline.papers.records import Record

WAYS: Mapping[str, Mapping[str, Setting]] = {
    "as published": {},
    "larger blocks": {"block_size": 8, "depth": 8},
    "second moment a block": {"second_moment": "block"},
    "both": {"block_size": 8, "depth": 8, "second_moment": "block"},
    "half the depth": {"depth": 8},
    "both and half the depth": {
        "block_size": 8,
        "depth": 4,
        "second_moment": "block",
    },
    "SGD for theta": {"meta_optimizer": "sgd", "meta_lr": 5e-3},
}
"""What differs from the tuned LODO."""


class LodoMemory(Problem):
    """LODO with less state, on the noisy bowl."""

    name: ClassVar[str] = "lodo-memory"
    summary: ClassVar[str] = (
        "LODO on the noisy bowl with larger blocks, less depth, a second moment a block, or SGD for its network: bytes "
        "of state and loss; 10,000 steps, with --quick 2,000"
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "the noisy bowl",
            "repro:lodo-memory",
            tuple(Entry(way, way, {**TUNED, **changes}) for way, changes in WAYS.items()),
            "loss",
        ),
    )
    seeds: ClassVar[int] = 4
    steps: ClassVar[int] = 10_000
    quick_steps: ClassVar[int] = 2000

    def run(self, run: Run) -> Outcome:
        """Follow the minimum, the same for all."""
        chase = Chase(run, "lodo")
        for _ in chase:
            pass
        if not math.isfinite(chase.score):
            return Outcome("diverged", chase.steps, "the loss is not finite")
        size = state_bytes(chase.optimizer)
        return Outcome("finished", chase.steps, score=chase.score, result={"loss": chase.score}, state_bytes=size)

    def code(self) -> Sequence[Any]:
        """What makes a run's numbers."""
        return (Bowl, Landscape, Chase, *MAKERS.values(), LodoMemory.run)

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By way: settings, bytes a parameter, the loss with its interval over seeds."""
        ways = {
            one.entry.label: {
                "settings": settings_of(one),
                "bytes": one.kept[0].state_bytes / DIMENSION if one.kept else None,
                "lost": one.lost,
                "loss": one.measure("loss"),
            }
            for one in self.tuned(design, done)
        }
        return {"steps": self.length(design), "ways": ways}

    def page(self, record: Record) -> Page:
        """A table."""
        steps, seeds, rows = record["results"]["steps"], record["design"]["seeds"], []
        for way, found in record["results"]["ways"].items():
            loss = digits(estimated(found["loss"])) + lost_of(found["lost"], seeds)
            size = f"{found['bytes']:,.0f}" if found["bytes"] else "–"
            rows.append(Row([way, loss, size, describe(found["settings"])]))
        head = ["LODO", "Mean loss, last tenth", "State, bytes a parameter", "Settings"]
        lead = (
            "LODO’s network has 128 numbers for each parameter, Adam two more for each of them. This is what less of "
            f"it costs on the noisy bowl: {steps:,} steps, {plural(seeds, 'seed')}, float32; a seed "
            "draws the basis, the minimum’s steps and the network. ½ tr H = 7.41 is the exact Newton step’s loss."
        )
        note = "Means with 95 % bootstrap intervals over seeds; what is not named is at its default."
        return Page("LODO with less memory", [lead], [Section("Result", note, Table("result", head, rows))])
