"""A race that was never run: its records are written from the losses that a test wants."""

import dataclasses
import itertools

import numpy as np

from fallline.bench.contenders import get_contender
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Place, Race
from fallline.bench.race.results import results
from fallline.bench.runs.run import Outcome, Run


def stage(
    store,
    losses,
    *,
    name="staged",
    tasks=("hill",),
    held_out=True,
    environment=None,
    settings=None,
    about=None,
    **asked,
):
    """A race that nobody ran: everyone's final losses by seed on every task; None is a seed that was lost.

    Four trials each: the first is the best, and the last diverged. `settings` are further ones of everyone's, by name;
    `about` changes what is said of all; `asked` goes into the design.
    """
    seeds = len(next(iter(losses.values())))
    design = Design(tasks=tasks, optimizers=tuple(losses), trials=4, finalists=1, seeds=seeds, **asked)
    described = {n: {**get_contender(n).describe(), "extended": {}, "excuse": "", **(about or {})} for n in losses}
    task = {"summary": "a hill", "steps": 100, "held_out": held_out, "floor": None, "reference": None}
    setting = {
        "command": f"fallline race {' '.join(tasks)}",
        "environment": environment or {"torch": "2.13.0"},
        "left_out": {},
        "tasks": {one: {**task, "floor_name": "", "equivalence": None} for one in tasks},
        "contenders": dict.fromkeys(tasks, described),
    }
    race = Race(name, dataclasses.asdict(design), setting, "2026-01-02T03:04:05")
    store.open_race(race)
    for task, (optimizer, finals) in itertools.product(tasks, losses.items()):
        best = {"lr": 0.01, **(settings or {}).get(optimizer, {})}
        middle = np.mean([one for one in finals if one is not None] or [1.0])
        scores = {0.01: middle, 0.003: middle + 0.1, 0.001: middle + 0.2, 0.9: None}
        runs = {
            "trial": [({**best, "lr": rate}, score) for rate, score in scores.items()],
            "seed": [(best, final) for final in finals],
            "default": [({}, final) for final in finals],
        }
        kinds = ("trial", "seed") if "tuned" in design.tracks else ()
        for kind in (*kinds, "default") if "defaults" in design.tracks else kinds:
            for i, (point, final) in enumerate(runs[kind]):
                entry = Place(task, optimizer, kind, i)
                key = " ".join(map(str, (name, *dataclasses.astuple(entry))))
                store.add(key, Run(task, optimizer, point, i), outcome(final, i, held_out))
                store.enter(race.id, entry, key)
    return results(store, race)


def outcome(final, lateness, held_out=True):
    """A run from a loss of 2 down to `final` at its 100th step; by the clock, the later the slower."""
    if final is None:
        return Outcome("diverged", 7, "the training loss is not finite")
    steps = [5.0 * i for i in range(21)]
    values = [final + (2 - final) * (1 - step / 100) ** 3 for step in steps]
    curve = {"step": steps, "gradient evaluations": steps, "train loss": [None, *values[1:]]}
    seconds = [step / 100 * (1 + lateness / 10) for step in steps]
    return Outcome(
        "finished",
        100,
        score=final,
        result={"loss": final, "accuracy": 0.9} if held_out else {"loss": final},
        curve=curve | ({"validation loss": values} if held_out else {}),
        times={"cpu seconds": seconds, "wall seconds": [2 * one for one in seconds]},
        gradient_evaluations=100,
        cpu_seconds=seconds[-1],
        wall_seconds=2 * seconds[-1],
        state_bytes=1234,
    )


def spaced(mean, count=8):
    """So many losses around a mean, 0.001 apart."""
    return [mean + 0.001 * (i - (count - 1) / 2) for i in range(count)]
