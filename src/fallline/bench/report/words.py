"""A race in words: which optimizer won where, how sure that is, what it cost, and what weakens it."""

from collections.abc import Iterable, Sequence

from fallline.bench.common.numbers import difference, duration, listed, number
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.changes import Change, Changes
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import title
from fallline.bench.protocol.verdict import CLAIMS, Word

ORDER: tuple[Word, ...] = ("better", "practically equal", "no evidence", "worse", "too few seeds")


def summary(results: Results) -> list[str]:
    """What came of a race, the answer first."""
    found = []
    several = len(results.parts) > 1
    for part in results.parts:
        where = f"{title(part.task, part.track, results.design.tracks)}: " if several else ""
        found += [where + sentence if i == 0 else sentence for i, sentence in enumerate(verdicts(part))]
    return sentences([*found, *caution(results), *cost(results)], results)


def sentences(lines: Iterable[str], results: Results) -> list[str]:
    """With capital letters, except where a sentence begins with a name: arTuRO keeps its small letter."""
    names = (*results.design.tasks, *(entry.label for part in results.parts for entry in part.entries))
    return [one if one.startswith(names) else one[:1].upper() + one[1:] for one in lines]


def caution(results: Results) -> list[str]:
    """What a verdict on tuned settings is about, where one claims a difference."""
    tuned = [entry for part in results.parts if part.track == "tuned" for entry in part.entries]
    if not any(entry.verdict and entry.verdict.word in CLAIMS for entry in tuned):
        return []
    return [
        f"Each optimizer was tuned by one search of {results.design.trials} trials. "
        "Use --studies to see how much the search itself contributes."
    ]


def verdicts(part: Comparison) -> list[str]:
    """What the seeds say of one comparison."""
    if part.baseline is None:
        raced = [entry for entry in part.entries if entry.finished]
        if not raced:
            return ["no run has reached its confirming seeds."]
        leader = raced[0]
        return [f"{leader.label} has the lowest loss, {number(_mean(leader))}; there is no baseline to compare with."]
    against = part.baseline
    found = [f"the best baseline is {against.label}, with a {part.loss_name} of {number(_mean(against))}."]
    for word in ORDER:
        them = [entry for entry in part.entries if entry.verdict and entry.verdict.word == word]
        if them:
            found.append(_of(word, them, part))
    return found


def _of(word: Word, them: Sequence[ContenderResult], part: Comparison) -> str:
    scale = part.scale or 1.0
    names = listed([_with_difference(entry, scale) for entry in them])
    verb = "is" if len(them) == 1 else "are"
    assert part.baseline is not None  # verdicts are against it
    if word in CLAIMS:
        return f"{names} {verb} {word} than {part.baseline.label}."
    if word == "practically equal":
        margin = difference(part.margin, scale).lstrip("+")
        return f"{names} {verb} practically equal to it: the difference is within the equivalence margin of ±{margin}."
    if word == "too few seeds":
        reasons: dict[str, list[str]] = {}
        for entry in them:
            reasons.setdefault(entry.verdict.why if entry.verdict else "", []).append(_with_difference(entry, scale))
        return " ".join(f"{listed(who)}: too few seeds for a verdict ({why})." for why, who in reasons.items())
    needed = [entry.verdict.needed for entry in them if entry.verdict and entry.verdict.needed]
    more = f"; about {max(needed)} seeds would tell" if needed else ""
    return f"{names}: no evidence of a difference{more}."


def _with_difference(entry: ContenderResult, scale: float) -> str:
    found = entry.verdict.difference if entry.verdict else None
    return f"{entry.label} ({difference(found.mean, scale)})" if found else entry.label


def cost(results: Results) -> list[str]:
    """What the race took, and whose share was largest."""
    spent: dict[str, float] = {}
    for part in results.parts:
        for entry in part.entries:
            spent[entry.label] = spent.get(entry.label, 0.0) + entry.cpu_seconds
    total = sum(spent.values())
    if not total:
        return []
    runs = sum(len(entry.runs) for part in results.parts for entry in part.entries)
    most, least = max(spent, key=lambda name: spent[name]), min(spent, key=lambda name: spent[name])
    text = f"All {runs:,} runs took {duration(total)} of CPU time"
    if most != least:
        text += f", {most}'s {duration(spent[most])} and {least}'s {duration(spent[least])}"
    return [f"{text}."]


def _mean(entry: ContenderResult) -> float | None:
    loss = entry.measure("loss")
    return loss.mean if loss else None


def changes_words(found: Changes) -> list[str]:
    """What changed since an earlier race, in sentences."""
    said = []
    for part in found.parts:
        if part.now is None or part.then is None:
            said.append(f"{part.title} {'is new' if part.then is None else 'was raced before, and is no longer'}.")
            continue
        for became in dict.fromkeys(_became(one) for one in sorted(part.entries, key=_urgency)):
            who = listed([one.label for one in part.entries if _became(one) == became])
            said.append(f"{part.title}: {who} {became}.")
    return said


def _urgency(change: Change) -> int:
    """Who became worse comes first."""
    order: tuple[Word, ...] = ("worse", "better", "practically equal", "no evidence", "too few seeds")
    return order.index(change.verdict.word) if change.verdict else len(order)


def _became(change: Change) -> str:
    if change.old is None:
        return "took part for the first time"
    if change.new is None:
        return "took part before, and no longer"
    if change.same:
        return "ended at the very same losses"
    if change.verdict:
        return {
            "better": "became better",
            "worse": "became worse",
            "practically equal": "stayed practically equal",
            "no evidence": "changed, without evidence of a difference",
            "too few seeds": "changed, on too few seeds for a verdict",
        }[change.verdict.word]
    if change.difference is None:
        return "cannot be compared: no seed finished in one of the races"
    if change.difference.excludes_zero:
        return f"ended at {'lower' if change.difference.mean < 0 else 'higher'} losses, on other seeds"
    return "ended at about the same losses, on other seeds"
