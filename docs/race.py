"""What pages quote of races: how much of one is luck of the search and of the seeds, and where everyone stands.

    fallline race digits --optimizers sgd,adamw --trials 150 --seeds 30 --out runs/luck
    python docs/race.py runs/luck

is 378 runs, two to three minutes on two cores, and the table in docs/race.md;

    fallline race digits bowl --optimizers all --out runs/all
    python docs/race.py runs/all

1,209 runs, a quarter of an hour, and the table in docs/choose.md; and with the race of docs/beyond.md on two tasks more
in runs/unseen

    python docs/race.py runs/unseen

is the table there. Which of the three it is, the race itself tells.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fallline.bench.cli.terminal import DATABASE
from fallline.bench.common.files import fill, markdown
from fallline.bench.common.numbers import difference, spread
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.race.results import results
from fallline.bench.race.store import Store

HERE = Path(__file__).parent
SEARCHES = 2000
BUDGETS = (3, 5, 10, 20, 50)

Array = NDArray[np.float64]


def luck(scores: Array, budget: int) -> tuple[float, float]:
    """Mean and standard deviation of the best of `budget` scores, over searches drawn from all without replacement."""
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(scores, budget, replace=False) for _ in range(SEARCHES)])
    best = drawn.min(axis=1)
    return float(best.mean()), float(best.std())


def scores(part: Comparison, entry: ContenderResult) -> Array:
    """Of all trials; a lost one has learned nothing."""
    worst = part.initial or np.inf
    return np.array([worst if o.score is None else min(o.score, worst) for _, o in entry.trials.values()])


def losses(part: Comparison) -> dict[str, Array]:
    """Of the confirming seeds on which everyone learned something: the loss fell by half at least."""
    every = np.array([[e.seeds[n].result.get("loss", np.inf) for n in sorted(e.seeds)] for e in part.entries])
    learned = (every < 0.5 * (part.initial or np.inf)).all(axis=0)
    return {entry.label: row[learned] for entry, row in zip(part.entries, every, strict=True)}


def table(part: Comparison) -> str:
    """Seeds and searches side by side."""
    entries = sorted(part.entries, key=lambda entry: entry.label)
    final, rows = losses(part), []
    cells = [f"{final[entry.label].mean():.3f} ({final[entry.label].std(ddof=1):.3f})" for entry in entries]
    rows.append([f"test loss, settings fixed: mean (sd over {len(final[entries[0].label])} seeds)", *cells])
    for budget in BUDGETS:
        best = [luck(scores(part, entry), budget) for entry in entries]
        cells = [f"{mean:.3f} ({sd:.3f})" for mean, sd in best]
        rows.append([f"validation loss of the best of {budget} trials: mean (sd over searches)", *cells])
    return markdown(["", *(entry.label for entry in entries)], rows)


def pairing(part: Comparison) -> str:
    """What it is worth that both see the same weights and batches."""
    a, b = losses(part).values()
    paired, unpaired = (a - b).std(ddof=1), np.sqrt(a.var(ddof=1) + b.var(ddof=1))
    dropped = len(part.entries[0].seeds) - len(a)
    return (
        f"Pairing: over the same seeds the two losses have a correlation of {np.corrcoef(a, b)[0, 1]:.2f}; the "
        f"standard deviation of their difference is {paired:.4f}, and would be {unpaired:.4f} of unpaired seeds. "
        f"({dropped} of {len(a) + dropped} seeds left out here: on them one of the two learned nothing.)"
    )


def everyone(found: Results) -> str:
    """A row for each, ours in bold, in the order of the first task: the loss, and the verdict against the baseline."""
    head = ["", *(f"{part.task}, {part.loss_name}" for part in found.parts)]
    names = dict.fromkeys(entry.name for part in found.parts for entry in part.entries)
    rows = []
    for name in names:
        entries = [next((entry for entry in part.entries if entry.name == name), None) for part in found.parts]
        known = next(entry for entry in entries if entry)
        cells = [
            stands(part, entry) if entry else "cannot take part"
            for part, entry in zip(found.parts, entries, strict=True)
        ]
        rows.append([heading(known), *cells])
    return markdown(head, rows)


def heading(entry: ContenderResult) -> str:
    """A label, in bold where it is one of ours."""
    return f"**{entry.label}**" if entry.ours else entry.label


def stands(part: Comparison, entry: ContenderResult) -> str:
    """A loss with its interval, and the word on it; the baseline has none."""
    loss = spread(entry.measure("loss"))
    if entry is part.baseline:
        return f"{loss}, the best baseline"
    if entry.verdict is None:
        return loss
    gap = entry.verdict.difference and difference(entry.verdict.difference.mean, part.scale or 1.0)
    return f"{loss}, {entry.verdict.word}" + (f" {gap}" if gap else "")


def unseen(found: Results) -> str:
    """A row for each: on every task how far shipped settings lie above AdamW's tuned, and what tuned ones reach."""
    head, rows = [""], []
    tasks = [part for part in found.parts if part.track == "tuned"]
    for part in tasks:
        head += [f"{part.task}, shipped, %", f"{part.task}, tuned"]
    for name in found.design.optimizers:
        row = [heading(tasks[0].get(name))]
        for part in tasks:
            row += [above(found.part(part.task, "defaults").get(name), part.get("adamw")), stands(part, part.get(name))]
        rows.append(row)
    return markdown(head, rows)


def above(entry: ContenderResult, reference: ContenderResult) -> str:
    """By how many per cent of its mean loss an entry lies above another, over the seeds, with the 95 % interval."""
    found = entry.above(reference)
    if found is None:
        return "lost"
    told = [f"{value:+,.1f}".replace("-", "−") for value in (found.mean, found.low, found.high) if value is not None]
    return f"{told[0]} [{', '.join(told[1:])}]" + (f", {entry.failed_seeds} lost" if entry.failed_seeds else "")


def main() -> None:
    """Read the race and write the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/luck")
    with Store(folder / DATABASE) as store:
        race = store.last_race()
        if race is None:
            sys.exit(f"there is no race in {folder}")
        found = results(store, race)
    if found.missing:
        sys.exit(f"the race is not finished: {found.missing} runs are missing")
    if any(part.track == "defaults" for part in found.parts):
        fill(HERE / "beyond.md", "unseen", unseen(found))
    elif len(found.parts) > 1:
        fill(HERE / "choose.md", "everyone", everyone(found))
    else:
        part = found.part("digits")
        fill(HERE / "race.md", "luck", f"{table(part)}\n\n{pairing(part)}")


if __name__ == "__main__":
    main()
