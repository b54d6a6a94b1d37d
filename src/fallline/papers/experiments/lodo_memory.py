"""What shrinks LODO's state, and what each way costs on the noisy bowl. Ours; the paper has no such experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from fallline import LODO
from fallline.bench.common.numbers import describe
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.stats import Interval, interval
from fallline.bench.runs.loop import state_bytes
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.bowl import DIMENSION, Bowl, Landscape
from fallline.papers.experiments._experiment import Design, Done, Experiment, Record, Stages
from fallline.papers.experiments.lodo_bowl import TUNED, digits
from fallline.papers.experiments.page import Page, Row, Section, Table

SGD: Mapping[str, Setting] = {"meta_optimizer": "sgd", "meta_lr": 5e-3}
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
    "SGD for theta": SGD,
}
"""What differs from the tuned LODO."""


class LodoMemory(Experiment):
    """LODO with less state, on the noisy bowl."""

    name: ClassVar[str] = "lodo-memory"
    summary: ClassVar[str] = (
        "LODO on the noisy bowl with larger blocks, less depth, a second moment a block, or SGD for its network: bytes "
        "of state and loss; 10,000 steps, with --quick 2,000"
    )
    contenders: ClassVar[tuple[str, ...]] = tuple(WAYS)
    seeds: ClassVar[int] = 4
    steps: ClassVar[int] = 10_000
    quick_steps: ClassVar[int] = 2000

    def stages(self, design: Design) -> Stages:
        """One: every way on the same bowls."""
        steps = self.quick_steps if design.quick else self.steps
        yield [
            Run(f"repro:{self.name}", way, {**TUNED, **changes, "steps": steps}, seed, test=True)
            for way, changes in WAYS.items()
            if way in (design.optimizers or WAYS)
            for seed in range(design.seeds)
        ]

    def run(self, run: Run) -> Outcome:
        """Follow the minimum. Basis and steps of the minimum come from the seed alone, so all see the same."""
        settings: dict[str, Any] = dict(run.settings)
        steps = settings.pop("steps")
        minima = Bowl().batches(generator(run.seed, "order"))
        seed_torch(run.seed, "init")
        model = Landscape()
        optimizer = LODO(model.parameters(), generator=generator(run.seed, "network"), **settings)
        losses = torch.zeros(steps, dtype=torch.float64)
        for step in range(steps):
            loss = model(next(minima)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[step] = loss.detach()
        score = losses[-(steps // 10) :].mean().item()
        if not math.isfinite(score):
            return Outcome("diverged", steps, "the loss is not finite")
        return Outcome("finished", steps, score=score, result={"loss": score}, state_bytes=state_bytes(optimizer))

    def code(self) -> Sequence[Any]:
        """What makes a run's numbers."""
        return Bowl, Landscape, LodoMemory.run

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By way: settings, bytes a parameter, the loss with its interval over seeds."""
        ways: dict[str, Any] = {}
        for way in WAYS:
            runs = [(run, outcome) for run, outcome in done if run.optimizer == way]
            if not runs:
                continue
            kept = [outcome for _, outcome in runs if not outcome.lost]
            found = interval([outcome.result["loss"] for outcome in kept])
            ways[way] = {
                "settings": {key: value for key, value in runs[0][0].settings.items() if key != "steps"},
                "bytes": kept[0].state_bytes / DIMENSION if kept else None,
                "lost": len(runs) - len(kept),
                "loss": vars(found) if found else None,
            }
        return {"steps": int(done[0][0].settings["steps"]), "ways": ways}

    def page(self, record: Record) -> Page:
        """A table."""
        steps, seeds, rows = record["results"]["steps"], record["design"]["seeds"], []
        for way, found in record["results"]["ways"].items():
            loss = digits(Interval(**found["loss"])) if found["loss"] else "–"
            lost = f" ({found['lost']} of {seeds} seeds lost)" if found["lost"] else ""
            size = f"{found['bytes']:,.0f}" if found["bytes"] else "–"
            rows.append(Row([way, loss + lost, size, describe(found["settings"])]))
        head = ["LODO", "Mean loss, last tenth", "State, bytes a parameter", "Settings"]
        lead = (
            "LODO’s network has 128 numbers for each parameter, Adam two more for each of them. This is what less of "
            f"it costs on the noisy bowl: {steps:,} steps, {seeds} seed{'s' if seeds != 1 else ''}, float32; a seed "
            "draws the basis, the minimum’s steps and the network. ½ tr H = 7.41 is the exact Newton step’s loss."
        )
        note = "Means with 95 % bootstrap intervals over seeds; what is not named is at its default."
        return Page("LODO with less memory", [lead], [Section("Result", note, Table("result", head, rows))])
