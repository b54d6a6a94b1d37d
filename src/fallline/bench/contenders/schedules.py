"""Schedules of the learning rate: what multiplies it at each step of a run."""

import math

from fallline.bench.tasks import Schedule

WARM_UP = 0.05
"""Share of the horizon over which the common schedules rise, and a method that has a warm-up of its own."""

Drops = tuple[float, tuple[float, ...]]
"""The schedule `step`: a factor, and the shares of the horizon after which it is applied."""

DROPS: Drops = (0.2, (0.3, 0.6, 0.9))
"""The KOALA papers', and usual for SGD."""


def lr_factor(schedule: Schedule, step: int, steps: int, drops: Drops = DROPS, warm_up: float | None = None) -> float:
    """What multiplies the learning rate at `step` = 1 ... `steps`.

    Args:
        schedule: `cosine` and `linear` go down to just over 0 after the warm-up; `step` takes a factor at each of the
            drops; `constant` is 1.
        step: the coming step.
        steps: of the run.
        drops: of the schedule `step`.
        warm_up: share of the run in which the factor rises from 0 to 1; None: `WARM_UP`, and none under `step` and
            `constant`.
    """
    falls = schedule in ("cosine", "linear")
    rise = max(1, round(WARM_UP * steps)) * falls if warm_up is None else round(warm_up * steps)
    if step <= rise:
        return step / rise
    if schedule == "step":
        factor, shares = drops
        return float(factor ** sum(step > round(share * steps) for share in shares))
    gone = (step - rise) / (steps - rise + 1) if falls else 0.0
    return 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))


def parse_drops(text: str, separator: str = ",") -> Drops:
    """A factor and the shares after which it is applied, `0.1,0.5,0.75`; `ValueError` for what is none."""
    factor, *shares = map(float, text.split(separator))
    if not (factor > 0 and shares and all(0 < share < 1 for share in shares)):
        raise ValueError(f"{text!r} is no positive factor and shares between 0 and 1")
    return factor, tuple(shares)


def spell_drops(drops: Drops) -> str:
    """As `parse_drops` reads it."""
    return ",".join(f"{x:g}" for x in (drops[0], *drops[1]))
