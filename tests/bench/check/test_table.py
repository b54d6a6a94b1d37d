"""Our optimizers keep the promises of `fallline check` with the settings of the table too, in this process."""

import pytest
from methods import TABLE

from fallline.bench.check.promises import PROMISES
from fallline.bench.check.subject import get_subject
from fallline.bench.check.trial import Outcome, attempt

# To learn and to compile takes most of the time: `tests/library/test_contract.py` asks for more of both.
TRIED = [one for one in PROMISES.values() if one.ranks == 1 and one.group != "learns" and "compiles" not in one.name]

ONE_A_GROUP = {"arturo-group", "lodo", "lodo-decay", "lodo-sgd", "lodo-residual", "lodo-global"}
"""Where two groups are to differ: each has a bound, or a network, of its own."""

REFUSED = {"gradients/sparse", "run/a-negative-lr-in-mid-run"}
"""What all of ours refuse in words."""


@pytest.mark.parametrize("name", TABLE)
def test_ours_keep_every_promise_with_other_settings(name: str) -> None:
    kind, settings = TABLE[name]
    subject = get_subject(f"fallline:{kind.__name__}", settings)
    verdicts = [attempt(one, subject) for one in TRIED]
    excused = {"groups/two-alike-are-one"} if name in ONE_A_GROUP else set()
    assert {one.promise for one in verdicts if one.broken} == excused, verdicts
    assert {one.promise for one in verdicts if one.outcome is Outcome.refused} == REFUSED
    assert Outcome.absent not in {one.outcome for one in verdicts}
