"""What stochastic rounding gains where the weights are bfloat16 and nothing else is kept. Ours; no paper has it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

import fallline
from fallline.bench.common.numbers import plural
from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Setting
from fallline.bench.runs.loop import state_bytes
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.digits import EPOCHS, Digits
from fallline.papers.experiments._experiment import Case, Design, Done, Entry
from fallline.papers.experiments._problem import Problem, estimated
from fallline.papers.experiments.page import Page, Row, Section, Table, digits, lost_of
from fallline.papers.records import Record

SETTINGS: Mapping[str, Mapping[str, Setting]] = {
    "CoolMomentum": {"lr": 0.02, "rho_0": 0.9, "cool_steps": Digits.steps},
    "VanillaKOALA": {},
    "MomentumKOALA": {},
    "KOALAPlusPlus": {},
    "ArTuRO": {},
    "LODO": {},
}
"""By optimizer: the defaults, but CoolMomentum, which cools over the length of a run."""

WEIGHTS: Mapping[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16, to nearest": (torch.bfloat16, False),
    "bfloat16, stochastic": (torch.bfloat16, True),
}
"""Precision of weights, activations and gradients, and whether the step rounds stochastically."""

SPLITS = ("train", "validation")


class Rounding(Problem):
    """Digits in float32, and in bfloat16 rounded in two ways: from the same weights and with the same batches."""

    name: ClassVar[str] = "bfloat16"
    summary: ClassVar[str] = (
        "digits trained in float32, and in pure bfloat16 with the weights rounded to nearest or stochastically; the "
        "loss on the training set at the end, 480 steps"
    )
    cpu: ClassVar[tuple[Case, ...]] = tuple(
        Case(
            weights,
            "repro:bfloat16",
            tuple(Entry(name, name, {**settings, "weights": weights}) for name, settings in SETTINGS.items()),
            "loss",
        )
        for weights in WEIGHTS
    )
    quick_seeds: ClassVar[int] = 3
    steps: ClassVar[int] = Digits.steps
    quick_steps: ClassVar[int] = Digits.steps

    def run(self, run: Run) -> Outcome:
        """Train as the race does, all in one precision; only the loss is computed in float32 from the logits."""
        settings: dict[str, Any] = dict(run.settings)
        dtype, stochastic = WEIGHTS[settings.pop("weights")]
        steps, task = settings.pop("steps"), Digits()
        batches = task.batches(generator(run.seed, "order"))
        seed_torch(run.seed, "init")
        model = task.model().to(dtype)
        make: Any = getattr(fallline, run.optimizer)
        optimizer = make(model.parameters(), stochastic_rounding=stochastic, **settings)
        for _ in range(steps):
            images, labels = next(batches)
            losses = F.cross_entropy(model(images.to(dtype)).float(), labels, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step(loss=losses.detach())
        if isinstance(optimizer, fallline.KOALA):
            optimizer.eval()
        with torch.no_grad():
            model = model.float()  # the rounding of the weights is seen, and not that of an evaluation
            epoch = torch.cat([task.losses(model, next(batches)) for _ in range(Digits.steps // EPOCHS)])
            result = {"train": epoch.mean().item(), "validation": task.evaluate(model, "validation")["loss"]}
        if not all(map(math.isfinite, result.values())):
            return Outcome("diverged", steps, "the loss is not finite")
        size = state_bytes(optimizer)
        return Outcome("finished", steps, score=result["validation"], result=result, state_bytes=size)

    def code(self) -> Sequence[Any]:
        """What makes a run's numbers."""
        return Digits, Rounding.run

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By optimizer and precision: both losses with their intervals over seeds."""
        found: dict[str, Any] = {}
        for one in self.tuned(design, done):
            losses = {split: one.measure(split) for split in SPLITS}
            found.setdefault(one.entry.label, {})[one.case.name] = {**losses, "lost": one.lost}
        return {"steps": self.steps, "optimizers": found}

    def page(self, record: Record) -> Page:
        """Two tables: what was minimised, and what it is worth."""
        results, seeds = record["results"], record["design"]["seeds"]

        def table(split: str) -> Table:
            rows = [
                Row([name, *(digits(estimated(one[split])) + lost_of(one["lost"], seeds) for one in ways.values())])
                for name, ways in results["optimizers"].items()
            ]
            return Table(split, ["Optimizer", *WEIGHTS], rows, brief=4)

        lead = (
            "A bfloat16 weight has eight bits: a step below a 512th of it is lost when it is rounded to nearest. With "
            "stochastic_rounding=True it is rounded up or down, the nearer the likelier, and so right on average. "
            f"Digits, {results['steps']} steps, {plural(seeds, 'seed')}; weights, "
            "activations and gradients in the precision that is named, the optimizer’s state in float32."
        )
        note = "Mean cross-entropy in nats with 95 % bootstrap intervals over seeds, at the end."
        return Page(
            "Training in bfloat16",
            [lead],
            [
                Section("Training set: what is minimised", note, table("train")),
                Section("Validation set", note, table("validation")),
            ],
        )
