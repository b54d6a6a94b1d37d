"""The papers' claims as tests of science: `fallline repro --claims`.

A claim is a sentence with a source, a criterion that is fixed in code before anything is measured, and a measurement by
the library's own optimizers. One that does not hold is shown as such: it is a finding. Imports the experiments, the
tool and the library.
"""

from collections.abc import Sequence

from fallline.bench.common.names import unknown
from fallline.papers.claims import arturo, coolmomentum, koala, lodo
from fallline.papers.claims._claim import METHODS, Claim, Criterion, Effort, Measured, Reading, exact, mean_of

CLAIMS: tuple[Claim, ...] = (*koala.CLAIMS, *arturo.CLAIMS, *lodo.CLAIMS, *coolmomentum.CLAIMS)


def chosen(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names, a claim's or a method's; all of no names. `ValueError` where one is unknown."""
    known = {*METHODS, *(claim.id for claim in CLAIMS)}
    for name in names:
        if name.lower() not in known:
            raise unknown("claim or method", name, known)
    wanted = {name.lower() for name in names} or set(METHODS)
    return tuple(claim for claim in CLAIMS if wanted & {claim.id, claim.method})


__all__ = ["CLAIMS", "METHODS", "Claim", "Criterion", "Effort", "Measured", "Reading", "chosen", "exact", "mean_of"]
