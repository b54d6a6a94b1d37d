"""The tutorials and the method pages: programs do what the pages say, and the pages show what is in the code."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from scripts import script
from torch import Tensor, nn

import fallline

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCS = ROOT / "docs"


def block(page: str, title: str) -> str:
    """The block of a page that stands for a file of the reader's."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf'```python title="{re.escape(title)}"\n(.*?)```', text, re.DOTALL)
    assert found is not None, (page, title)
    return found[1]


# -- a transformer, fine-tuned ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
def test_fine_tuning_lowers_the_loss_and_saves_the_filtered_point(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tutorial = script("examples/fine_tune.py")
    losses = tutorial.fine_tune(tutorial.pretrained(steps=30), steps=24, folder=str(tmp_path))
    assert len(losses) == 5
    assert all(max(after) < min(losses[0]) - 0.05 for after in losses[1:])
    predicted, filtered = losses[1]
    assert predicted != pytest.approx(filtered, rel=1e-4)  # the two points differ while the velocities live

    source = tutorial.pieces(tutorial.inspect.getsource(tutorial.argparse))
    again = tutorial.LlamaForCausalLM.from_pretrained(tmp_path)
    assert tutorial.measure(again, source[-128:]) == pytest.approx(losses[-1][1], rel=1e-6)


# -- a task of one's own ----------------------------------------------------------------------------------------


def test_the_task_of_the_tutorial_is_the_one_that_the_page_shows_and_a_task() -> None:
    pytest.importorskip("typer")
    from fallline.bench.common.seeds import generator
    from fallline.bench.tasks import check, get_task

    assert block("tutorial-race.md", "letters.py") == (EXAMPLES / "letters.py").read_text(encoding="utf-8")
    task = get_task(str(EXAMPLES / "letters.py"))
    check(task)

    before, following = next(task.batches(generator(0, "order")))
    ids = task.parts["train"]
    assert before.shape == (64, 8)
    windows = ids.unfold(0, 9, 1)
    for row, last in zip(before[:4], following[:4], strict=True):  # eight letters of the text, then the next
        assert (windows == torch.cat([row, last[None]])).all(1).any()

    torch.manual_seed(0)
    untrained = task.evaluate(task.model().eval(), "validation")["loss"]
    assert untrained == pytest.approx(math.log(task.letters), abs=0.2)  # who knows nothing guesses evenly


def test_the_winner_of_the_page_is_the_winner_of_its_table() -> None:
    page = (DOCS / "tutorial-race.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| **Orthogonal KOALA** |"))
    told = dict(re.findall(r"(\w+) ([\d.]+)", row.split("|")[-2].replace("\\_", "_")))
    used = re.search(r"OrthogonalKOALA\(model\.parameters\(\), (.*)\)", page)
    assert used is not None
    assert dict(pair.split("=") for pair in used[1].split(", ")) == told


# -- an optimizer of one's own ----------------------------------------------------------------------------------


def test_the_new_optimizer_is_the_one_that_the_page_shows_in_forty_lines() -> None:
    source = (EXAMPLES / "new_optimizer.py").read_text(encoding="utf-8")
    assert block("tutorial-new-optimizer.md", "my_optimizer.py") == source
    assert len(source.splitlines()) <= 40


def test_the_card_of_the_page_is_found_beside_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pytest.importorskip("fallline.bench.contenders.names")
    page = [block("tutorial-new-optimizer.md", title) for title in ("my_optimizer.py", "at the end of my_optimizer.py")]
    (tmp_path / "my_method_with_card.py").write_text("\n".join(page).replace("my_optimizer:", "my_method_with_card:"))
    monkeypatch.syspath_prepend(tmp_path)
    card = names.get_contender("my_method_with_card:NormalizedMomentum")
    assert (card.label, list(card.space)) == ("Normalized momentum", ["lr", "momentum", "weight_decay"])
    assert card.make([nn.Parameter(torch.ones(2))], {"lr": 0.5}, None).param_groups[0]["lr"] == 0.5


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    """Some that turn from step to step, and of different sizes."""
    return [torch.cos(step + torch.arange(p.numel(), dtype=p.dtype) * (i + 1)).view_as(p) for i, p in enumerate(params)]


def start(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """A vector, a matrix and a number."""
    tensors = [torch.linspace(-1, 1, 5), torch.linspace(0, 3, 12).view(3, 4), torch.tensor(2.0)]
    return [nn.Parameter(t.to(dtype)) for t in tensors]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_new_optimizer_follows_its_formula(weight_decay: float) -> None:
    params, twins = start(), [p.detach().clone() for p in start()]
    optimizer = script("examples/new_optimizer.py").NormalizedMomentum(
        params, lr=0.05, momentum=0.8, weight_decay=weight_decay
    )
    averages = [torch.zeros_like(x) for x in twins]
    for step in range(12):
        for p, g in zip(params, gradients(twins, step), strict=True):
            p.grad = g
        averages = [0.8 * m + 0.2 * g for m, g in zip(averages, gradients(twins, step), strict=True)]
        norm = math.sqrt(sum(float((m * m).sum()) for m in averages))
        before = [x.clone() for x in twins]
        twins = [(1 - 0.05 * weight_decay) * x - 0.05 / norm * m for x, m in zip(twins, averages, strict=True)]
        optimizer.step()
        for p, x in zip(params, twins, strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-13)
        if not weight_decay:  # the step is as long as lr says
            length = math.sqrt(sum(float(((x - y) ** 2).sum()) for x, y in zip(twins, before, strict=True)))
            assert length == pytest.approx(0.05)


def test_the_new_optimizer_fused_is_the_same() -> None:
    runs = []
    for fused in (False, True):
        params = start(torch.float32)
        optimizer = script("examples/new_optimizer.py").NormalizedMomentum(params, weight_decay=0.1, fused=fused)
        for step in range(5):
            for p, g in zip(params, gradients(params, step), strict=True):
                p.grad = g.detach().clone()
            optimizer.step()
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_the_new_optimizer_leaves_out_a_step_with_a_nan() -> None:
    params = start()
    optimizer = script("examples/new_optimizer.py").NormalizedMomentum(params, weight_decay=0.1)
    for step in range(2):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g.detach().clone()
        optimizer.step()
    before = [t.clone() for p in params for t in (p.detach(), optimizer.state[p]["average"])]
    params[1].grad[0, 0] = torch.nan
    optimizer.step()
    after = [t for p in params for t in (p.detach(), optimizer.state[p]["average"])]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert optimizer.skipped.item() == 1


def test_the_new_optimizer_keeps_what_fallline_check_asks_for() -> None:
    """All promises of one process, but those of torch.compile, which take seconds; `fallline check` has the rest."""
    pytest.importorskip("typer")
    from fallline.bench.check.promises import PROMISES
    from fallline.bench.check.subject import get_subject
    from fallline.bench.check.trial import Outcome, attempt

    subject = get_subject(str(EXAMPLES / "new_optimizer.py"), {})
    asked = [path for path in PROMISES if not path.startswith(("processes/", "speed/compiles"))]
    verdicts = {path: attempt(PROMISES[path], subject) for path in asked}
    assert len(verdicts) > 50
    assert {path for path, verdict in verdicts.items() if verdict.broken} == set()
    assert {path for path, verdict in verdicts.items() if verdict.outcome is Outcome.refused} == {
        "gradients/sparse",
        "run/a-negative-lr-in-mid-run",
    }


def test_the_new_optimizer_says_what_is_outside_its_range() -> None:
    tutorial = script("examples/new_optimizer.py")
    with pytest.raises(ValueError, match=r"momentum=1\.0 is outside its range: a number in \[0, 1\)"):
        tutorial.NormalizedMomentum(start(), momentum=1.0)
    assert issubclass(tutorial.NormalizedMomentum, fallline.Optimizer)


# -- the method pages -------------------------------------------------------------------------------------------

CLASSES = {
    "koala.md": {"M": "MomentumKOALA", "V": "VanillaKOALA", "++": "KOALAPlusPlus"},
    "koala-metric.md": {"": "MetricKOALA"},
    "coolmomentum.md": {"": "CoolMomentum"},
    "arturo.md": {"": "ArTuRO"},
    "lodo.md": {"": "LODO"},
}
RACED = {
    "MomentumKOALA": "koala-m",
    "VanillaKOALA": "koala-v",
    "KOALAPlusPlus": "koala-pp",
    "MetricKOALA": "koala-orthogonal",  # its range comes first in the cell
    "CoolMomentum": "coolmomentum",
    "ArTuRO": "arturo",
    "LODO": "lodo",
}


def told_defaults(page: str) -> list[tuple[str, str, str, str]]:
    """Class, setting, default and range of every row of a page's table of defaults."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index("\n## Defaults") :]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|", table[: table.index("\n## What it costs")], re.MULTILINE)
    found = []
    for first, values, spread in rows:
        names = re.findall(r"`(\w+)`", first)
        if len(names) != len(parts := values.split(", ")):
            continue  # of the published settings
        of = re.search(r"\((.+)\)", first)
        chosen = of[1].split(", ") if of else list(CLASSES[page])
        for name, value in zip(names, parts, strict=True):
            found += [(CLASSES[page][which], name, value.strip('`"'), spread) for which in chosen]
    return found


@pytest.mark.parametrize("page", CLASSES)
def test_the_defaults_of_a_method_page_are_those_of_the_class(page: str) -> None:
    told = told_defaults(page)
    assert len(told) >= 5
    for kind, name, value, _ in told:
        parameters = inspect.signature(getattr(fallline, kind)).parameters
        default = parameters[name].default if name in parameters else None
        assert name in parameters or len(CLASSES[page]) > 1, (kind, name)
        if name in parameters:
            same = str(default) == value
            assert same or float(value) == float(default), (kind, name, value, default)


@pytest.mark.parametrize("page", CLASSES)
def test_the_ranges_of_a_method_page_are_those_of_the_race(page: str) -> None:
    pytest.importorskip("scipy")
    from fallline.bench.common.spaces import Range
    from fallline.bench.contenders import CONTENDERS

    compared = 0
    for kind, name, _, spread in told_defaults(page):
        space = CONTENDERS[RACED[kind]].space.get(name)
        if not isinstance(space, Range):
            continue
        low, high = map(float, re.findall(r"[\d.]+(?:e-?\d+)?", spread)[:2])
        ends = (1 - space.high, 1 - space.low) if space.scale == "one minus log" else (space.low, space.high)
        assert (low, high) == pytest.approx(ends, rel=0.1), (kind, name, spread)
        compared += 1
    assert compared >= 2
