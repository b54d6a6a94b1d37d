"""The verdict on a pair: better, worse, practically equal, no evidence, or too few seeds, and why.

A difference is claimed where the sign-flip test over paired seeds holds after Holm's adjustment for all rivals of one
baseline, the bootstrap interval excludes zero, and the winner failed on no more seeds than the other. Equality is
claimed where the interval lies within the equivalence margin. A race may be looked at several times while seeds are
added, if the number of looks is planned: each look then gets an equal share of the error rate.
"""

import functools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar, get_args

from fallline.bench.protocol.stats import (
    CONFIDENCE,
    FEW,
    MOST_SEEDS,
    Interval,
    detectable,
    fewest_seeds,
    holm,
    interval,
    seeds_needed,
    sign_flip,
    sign_test,
)

Word = Literal["better", "worse", "practically equal", "no evidence", "too few seeds"]
CLAIMS: tuple[Word, ...] = ("better", "worse")
"""The words that claim a difference."""

WORDS: tuple[Word, ...] = get_args(Word)
SETTLED: tuple[Word, ...] = (*CLAIMS, "practically equal")

MATRIX_SEEDS = 11
"""Fewer seeds cannot carry a test through Holm's adjustment for the 28 pairs of eight optimizers."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pairs:
    """The final losses of two optimizers by seed number; None where the seed failed or diverged."""

    mine: Mapping[int, float | None]
    theirs: Mapping[int, float | None]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one optimizer against another; lower losses are better."""

    word: Word
    difference: Interval | None
    """Mine minus theirs with its 95 % interval, over the seeds which both finished."""

    p: float | None
    """p of the sign-flip test, unadjusted; where failed seeds leave it too few, of the sign test on who failed."""

    adjusted: float | None
    """p after Holm's adjustment for all comparisons made together."""

    margin: float
    """The equivalence margin, to either side of zero, in units of the loss."""

    detectable: float | None
    """The smallest difference that these seeds find with 80 % power, at the level of Holm's first step."""

    needed: int | None
    """Seeds in total that would settle it, were it just as it looks; None when settled, unknown or over 1000."""

    why: str
    """The reason, in a few words."""


def judge(rivals: Mapping[str, Pairs], margin: float, *, alpha: float = 0.05, looks: int = 1) -> dict[str, Verdict]:
    """The verdict on each rival of one baseline on one task; `looks` is how often the race is looked at in all."""
    rule = _Rule(len(rivals), "against {} rival", margin, alpha / looks)
    facts, adjusted = rule.weigh(rivals)
    return {name: rule.verdict(facts[name], adjusted[name]) for name in rivals}


def words(rivals: Mapping[str, Pairs], margin: float, *, alpha: float = 0.05, looks: int = 1) -> dict[str, Word]:
    """The words of `judge` alone, and faster: an interval is computed only where it decides."""
    rule = _Rule(len(rivals), "against {} rival", margin, alpha / looks)
    facts, adjusted = rule.weigh(rivals)
    return {name: rule.decide(facts[name], adjusted[name])[0] for name in rivals}


def matrix(
    losses: Mapping[str, Mapping[int, float | None]], margin: float, alpha: float = 0.05
) -> dict[tuple[str, str], Verdict]:
    """The verdict on every ordered pair of optimizers, Holm over all unordered ones; see `descriptive`."""
    pairs = {(a, b): Pairs(losses[a], losses[b]) for a, b in combinations(losses, 2)}
    rule = _Rule(len(pairs), "in {} pair", margin, alpha)
    facts, adjusted = rule.weigh(pairs)
    found = {}
    for (a, b), seen in facts.items():
        found[a, b] = rule.verdict(seen, adjusted[a, b])
        found[b, a] = rule.verdict(seen.turned, adjusted[a, b])
    return {(a, b): found[a, b] for a in losses for b in losses if a != b}


def descriptive(seeds: int) -> bool:
    """Whether a matrix over so many seeds only describes what was seen."""
    return seeds < MATRIX_SEEDS


@dataclass(frozen=True)
class _Facts:
    """The facts that the seeds of a pair show."""

    differences: tuple[float, ...]
    ran: int
    failed_mine: int
    failed_theirs: int
    bounds: Callable[[float], Interval | None]
    """The interval of the differences at a confidence."""

    @classmethod
    def of(cls, pairs: Pairs) -> "_Facts":
        """Take the facts from the seeds that both have run; a loss that is not finite failed."""
        ran = sorted(pairs.mine.keys() & pairs.theirs.keys())
        mine, theirs = _finished(pairs.mine, ran), _finished(pairs.theirs, ran)
        differences = tuple(mine[i] - theirs[i] for i in ran if i in mine and i in theirs)
        bounds = functools.cache(functools.partial(interval, differences))
        return cls(differences, len(ran), len(ran) - len(mine), len(ran) - len(theirs), bounds)

    @property
    def turned(self) -> "_Facts":
        """The same, seen from the other side; its intervals are the same ones, so that the two cannot disagree."""
        turned = tuple(-one for one in self.differences)
        return _Facts(
            turned, self.ran, self.failed_theirs, self.failed_mine, lambda level: _negated(self.bounds(level))
        )

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def failed_alone(self) -> tuple[int, int]:
        """The numbers of seeds on which mine alone failed, and theirs alone."""
        both = self.failed_mine + self.failed_theirs + len(self.differences) - self.ran
        return self.failed_mine - both, self.failed_theirs - both

    @property
    def failures(self) -> str:
        """Who failed on more seeds, in words; empty when neither did."""
        if self.failed_mine == self.failed_theirs:
            return ""
        who, other, more, less = "it", "the other", self.failed_mine, self.failed_theirs
        if more < less:
            who, other, more, less = other, who, less, more
        if more == self.ran:
            return f"{who} failed on every seed"
        return f"{who} failed on {more} of {self.ran} seeds" + (f", {other} on {less}" if less else "")


@dataclass(frozen=True)
class _Rule:
    """The rule by which a family of comparisons, adjusted together, is judged."""

    size: int
    among: str
    """The family in words, with its size left open."""

    margin: float
    alpha: float
    """The error rate of the whole family at this look."""

    @functools.cached_property
    def fewest(self) -> int:
        """The fewest seeds finished by both with which the sign-flip test can hold."""
        return max(2, fewest_seeds(self.alpha, self.size))

    def weigh(self, family: Mapping[Key, Pairs]) -> tuple[dict[Key, _Facts], dict[Key, float]]:
        """The facts and the adjusted p of each."""
        facts = {key: _Facts.of(pairs) for key, pairs in family.items()}
        adjusted = holm([1.0 if (p := self.p(seen)) is None else p for seen in facts.values()])
        return facts, dict(zip(family, adjusted, strict=True))

    def by_failures(self, seen: _Facts) -> bool:
        """Whether only the failures can be tested.

        That depends on how many seeds failed, not on whose they were: under the hypothesis that the two are alike
        the names of each pair may be exchanged, and the choice of the test does not bend its error rate.
        """
        return len(seen.differences) < self.fewest and seen.failed_mine != seen.failed_theirs

    def p(self, seen: _Facts) -> float | None:
        """p of the test which applies, unadjusted; None where there is nothing to test."""
        if self.by_failures(seen):
            return sign_test(*seen.failed_alone)
        return sign_flip(seen.differences) if seen.differences else None

    def verdict(self, seen: _Facts, adjusted: float) -> Verdict:
        """The whole of it."""
        word, why = self.decide(seen, adjusted)
        p, n = self.p(seen), len(seen.differences)
        finds = detectable(statistics.stdev(seen.differences), n, self.alpha / self.size) if n > 1 else None
        return Verdict(
            word,
            difference=seen.bounds(CONFIDENCE),
            p=p,
            adjusted=None if p is None else adjusted,
            margin=self.margin,
            detectable=finds,
            needed=None if word in SETTLED else self.needed(seen),
            why=why,
        )

    def decide(self, seen: _Facts, adjusted: float) -> tuple[Word, str]:
        """The word, and why."""
        n, holds = len(seen.differences), adjusted <= self.alpha
        if n > 1 and not seen.failures and self._within_margin(seen):
            why = f"the interval lies within ±{self.margin:.3g}"
            if n >= FEW:
                return "practically equal", why
            return "too few seeds", f"{why}, but {n} seeds cannot claim that; {FEW} can"
        if self.by_failures(seen):
            if holds:
                return "worse" if seen.failed_mine > seen.failed_theirs else "better", seen.failures
            return "too few seeds", f"{seen.failures}; {self._too_few(n)}"
        if seen.ran and seen.failed_mine == seen.failed_theirs == seen.ran:
            return "no evidence", "neither finished a seed"
        if n < self.fewest:
            return "too few seeds", self._too_few(n)
        # From here on the seeds suffice. The interval comes last, since it takes the longest.
        claim: Word | None = None
        if holds and (bounds := self._bounds(seen)) and bounds.excludes_zero:
            claim = "better" if bounds.mean < 0 else "worse"
        if seen.failures and claim != ("worse" if seen.failed_mine > seen.failed_theirs else "better"):
            return "no evidence", seen.failures
        if holds and claim is None:
            return "no evidence", f"the interval holds zero, at {self._p(adjusted)}"
        return claim or "no evidence", self._p(adjusted)

    def needed(self, seen: _Facts) -> int | None:
        """Seeds in total that would settle what these did not, were all just as it looks; None where unknown."""
        n = len(seen.differences)
        if n < 2:
            hopeless = seen.ran > 0 and seen.failed_mine == seen.failed_theirs == seen.ran
            return None if hopeless else max(self.fewest, seen.ran + 1)
        if seen.failures and not self.by_failures(seen):
            return None  # more seeds do not make up for those that failed
        spread = statistics.stdev(seen.differences)
        total = seeds_needed(seen.mean, spread, self.margin, n, self.alpha, self.size)
        if total is None:
            return None
        total = math.ceil(total * seen.ran / n)  # as many will fail again
        return total if total <= MOST_SEEDS else None

    def _bounds(self, seen: _Facts) -> Interval | None:
        strict = 1 - self.alpha
        return seen.bounds(CONFIDENCE if math.isclose(strict, CONFIDENCE) else strict)

    def _within_margin(self, seen: _Facts) -> bool:
        if not abs(seen.mean) < self.margin:
            return False
        bounds = self._bounds(seen)
        if bounds is None or bounds.low is None or bounds.high is None:
            return False
        return -self.margin <= bounds.low and bounds.high <= self.margin

    def _too_few(self, n: int) -> str:
        among = _count(self.size, self.among)
        return f"{_count(n, 'seed')} cannot reach p {self.alpha:.2g} {among}; {self.fewest} can"

    def _p(self, adjusted: float) -> str:
        return f"p {adjusted:.3g}" + (" after Holm" if self.size > 1 else "")


def _finished(losses: Mapping[int, float | None], seeds: Iterable[int]) -> dict[int, float]:
    return {i: loss for i in seeds if (loss := losses[i]) is not None and math.isfinite(loss)}


def _negated(found: Interval | None) -> Interval | None:
    if found is None or found.low is None or found.high is None:
        return found and Interval(-found.mean, None, None, found.count)
    return Interval(-found.mean, -found.high, -found.low, found.count)


def _count(number: int, what: str) -> str:
    """A number and its noun: "1 seed", "2 seeds"; the noun may say where the number goes."""
    plural = "" if number == 1 else "s"
    return (what.format(number) if "{}" in what else f"{number} {what}") + plural
