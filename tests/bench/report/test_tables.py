"""One table in every medium: the cells are the same, and no name breaks a format."""

import io

import pytest
from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from rich.console import Console

from fallline.bench.report.looks import Line
from fallline.bench.report.tables import SIGNS, Row, Span, Table, markdown, terminal, word

OURS = Line("koala-m", "KOALA-M", ("#000000",) * 3)
THEIRS = Line("sgd", "SGD", ("#000000",) * 3, dash="dash", ours=False)
VERDICT = [word("better"), Span("−0.05 [−0.07, −0.01]", "line", brief="−0.05"), Span("p 0.01", "small", brief="")]
TABLE = Table(
    "result",
    ["Optimizer", "Loss", "Against SGD", "Settings"],
    [
        Row(["KOALA-M", "0.45 [0.41, ∞]", VERDICT, "lr 0.1"], OURS, ["the best lr lies at an edge"]),
        Row(["SGD", [Span("every trial failed", "warn")], "–", "[1, 2](http://a)"], THEIRS),
    ],
    brief=3,
    caption="Means.",
    right=("Loss",),
)


def page(table):
    """The table as the page has it."""
    templates = Environment(loader=PackageLoader("fallline.bench.report"), autoescape=True)
    return str(templates.get_template("shared.html").module.table(table))


def test_the_terminal_shows_the_first_columns_in_brief():
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal(TABLE, "Cliff"))
    title, head, ours, theirs = console.file.getvalue().splitlines()
    assert title.strip() == "Cliff"
    assert head.split() == ["Loss", "Against", "SGD"]
    assert ours.split() == ["KOALA-M", "0.45", "[0.41,", "∞]", "better", "−0.05"]
    assert theirs.split() == ["SGD", "every", "trial", "failed", "–"]


def test_markdown_has_every_column_and_no_cell_is_a_link():
    lines = markdown(TABLE)
    assert lines[0] == "| Optimizer | Loss | Against SGD | Settings |"
    assert lines[2] == "| **KOALA-M** | 0.45 [0.41, ∞] | better −0.05 [−0.07, −0.01] p 0.01 | lr 0.1 |"
    html = MarkdownIt("commonmark").enable("table").render("\n".join(lines))
    assert "<td>[1, 2](http://a)</td>" in html
    assert "<a" not in html


def test_the_page_has_every_cell_with_its_interval_its_sign_and_its_doubts():
    html = page(TABLE)
    assert '<span class="value">0.45</span> <span class="bounds">[0.41, ∞]</span>' in html
    assert f'<span class="word better"><b aria-hidden="true">{SIGNS["better"]}</b> better</span>' in html
    assert '<td data-label="Against SGD">' in html
    assert '<td colspan="4"><span class="doubt">the best lr lies at an edge</span></td>' in html
    assert html.count('class="ours has-doubt"') == 1
    assert all(text in html for text in (TABLE.caption, *TABLE.head, "every trial failed", "http://a"))


@pytest.mark.parametrize("evil", ["<b>&", "a | b", "`x`", "\n# head"])
def test_no_name_breaks_a_table(evil):
    table = Table("t", [evil, "b"], [Row([evil, [Span(evil, title=evil)]], OURS)])
    assert "<b>&" not in page(table).replace('<b aria-hidden="true">', "")
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(markdown(table)))
    cells = [token for token in tokens if token.type in ("th_open", "td_open")]
    assert len(cells) == 4
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal(table))
    assert evil.split()[0] in console.file.getvalue()
