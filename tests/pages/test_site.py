"""The pages: their code runs, their commands are ones that there are, and the site made of them stands alone."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch.distributed as dist
import typer
from scripts import script
from typer.testing import CliRunner

from fallline.bench.cli.root import app
from fallline.bench.contenders import get_contender
from fallline.bench.tasks import get_task
from fallline.papers.claims import chosen
from fallline.papers.experiments import get_experiment
from fallline.papers.gallery import get_picture

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


# -- the blocks of the pages ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    """Relative to the repository."""

    line: int
    """Of the fence, the first is 1."""

    language: str
    name: str
    """The file that it is, or is of: from its title, or from the comment above it."""

    text: str
    """Without its indentation."""

    @property
    def is_python(self) -> bool:
        """Whether it is Python, said or not."""
        return self.language in ("python", "py") or (not self.language and not self.commands and parses(self.text))

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command that a reader would type."""
        if self.language not in ("", "sh", "bash", "shell", "console"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
        return [shlex.split(line, comments=True) for line in typed if COMMAND.match(line)]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


COMMAND = re.compile(r"(fallline|make|python|torchrun)( |$)")
INLINE = re.compile(r"`(fallline (?![A-Z])[^`]*[^`.…])`")  # in capitals stands any
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(\w*)([^\n]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)


def parses(text: str) -> bool:
    """Whether a text is a program."""
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in FENCE.finditer(text):
        above = re.search(r"<!-- (\S+\.\w+) -->\s*\Z", text[: fence.start()])
        title = re.search(r'title="([^"]+)"', fence[4])
        name = title[1] if title else above[1] if above else ""
        where = page.relative_to(ROOT).as_posix(), text.count("\n", 0, fence.start()) + 1
        found.append(Block(*where, fence[3], name, textwrap.dedent(fence[5])))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
EXCERPTS = [block for block in BLOCKS if block.is_python and block.name and (ROOT / block.name).exists()]
"""Of the repository's files: they are there, and not run for themselves."""

ELSEWHERE = {
    "filtered_transformers.py": "test_examples.py: test_transformers_resume_to_the_same_bits",
    "filtered_lightning.py": "test_examples.py: test_lightning_resumes_to_the_same_bits",
    "gpt2_task.py": "test_own.py: test_the_page_s_model_from_transformers_trains",
}
"""Blocks that need a trainer, and that another test runs."""

QUOTES = {"docs/trainers.md": "test_examples.py: test_the_page_quotes_the_examples"}
"""Pages whose excerpts leave lines out, and the test that compares them."""

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from fallline import *
model, criterion = nn.Linear(20, 3), nn.CrossEntropyLoss()
x, y = torch.randn(32, 20), torch.randint(0, 3, (32,))
"""
ONE_OF_ONE = """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
)
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo", init_method="file://" + path_of("rendezvous"), rank=0, world_size=1)
group, world_size, examples_on_all_ranks, path = None, 1, 32, path_of("checkpoint")
"""
BLOCKY = """
model = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 3))
model.blocks = list(model)
"""
PARALLEL = """
from collections import OrderedDict
mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
model = nn.Sequential(OrderedDict(norm=nn.LayerNorm(20), up=nn.Linear(20, 8), down=nn.Linear(8, 3)))
"""
SAVED = """
model = nn.Linear(20, 3)
optimizer = MomentumKOALA(model.parameters())
loss = cross_entropy(model(x), y)
loss.backward()
optimizer.step(loss=loss)
"""

GIVEN = {
    "docs/bfloat16.md": {"optimizer = ": MODEL},
    "docs/distributed.md": {  # in one process: of more, test_distributed.py tells
        "model = Distr": MODEL + ONE_OF_ONE,
        "losses = ": "optimizer.zero_grad()",
        "for block": BLOCKY,
        "optimizer.follow": "model = nn.Sequential(nn.Linear(20, 3))",
        "parallelize_module": PARALLEL,
        "from torch.distributed import": SAVED,
    },
    "docs/trainers.md": {"optimizer = Mom": MODEL},
    "docs/torch.md": {
        "with optimizer.post": MODEL
        + "optimizer = MomentumKOALA(model.parameters())\naveraged = torch.optim.swa_utils.AveragedModel(model)",
        "optimizers = ": "",
    },
}
"""What a page says is the reader's own, by the beginning of the block that needs it; it goes before the block."""


def pages_with_code() -> list[str]:
    """Pages that have Python of their own."""
    return sorted({block.page for block in BLOCKS if block.is_python and block not in EXCERPTS})


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what is imported from it is forgotten, and a process group ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("page", pages_with_code())
def test_the_code_of_a_page_runs(page: str, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": Path(page).stem, "path_of": lambda name: str(alone / name)}
    given = dict(GIVEN.get(page, {}))
    for block in [b for b in BLOCKS if b.page == page and b.is_python and b not in EXCERPTS]:
        if block.name in ELSEWHERE:
            continue
        for beginning in [beginning for beginning in given if block.text.startswith(beginning)]:
            exec(compile(given.pop(beginning), f"given for {block}", "exec"), names)
        if block.name:
            (alone / block.name).write_text(block.text, encoding="utf-8")
        exec(compile("\n" * block.line + block.text, page, "exec"), names)
    assert not given, "nothing needs this any more"


@pytest.mark.parametrize("block", [block for block in EXCERPTS if block.page not in QUOTES], ids=str)
def test_an_excerpt_of_a_file_is_in_it_to_the_letter(block: Block) -> None:
    source = (ROOT / block.name).read_text(encoding="utf-8").splitlines()
    wanted = block.text.rstrip().splitlines()
    places = [i for i, line in enumerate(source) if line.strip() == wanted[0].strip()]
    slices = (textwrap.dedent("\n".join(source[i : i + len(wanted)])) for i in places)
    assert "\n".join(wanted) in slices, f"{block}: not in {block.name}"


def test_what_is_run_elsewhere_is_there() -> None:
    assert ELSEWHERE.keys() <= {block.name for block in BLOCKS}
    for place in [*ELSEWHERE.values(), *QUOTES.values()]:
        file, test = place.split(": ")
        assert f"def {test}(" in next(ROOT.glob(f"tests/**/{file}")).read_text(encoding="utf-8")


# -- commands ---------------------------------------------------------------------------------------------------


@cache
def commands() -> dict[str, list[list[str]]]:
    """The commands of each page: of its blocks, and those named in its text."""
    found: dict[str, list[list[str]]] = {}
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        inline = [shlex.split(code.replace("\n", " ")) for code in INLINE.findall(text)]
        inline = [words if len(words) > 2 else [*words, "--help"] for words in inline]  # a command is named, not typed
        typed = [words for block in blocks(page) for words in block.commands]
        found[page.relative_to(ROOT).as_posix()] = typed + inline
    return found


@cache
def idle_command_line() -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
    """The command line, in which every command only notes its name and its arguments; and these notes."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def idle(command: Any, path: str) -> None:
        command.callback = lambda **arguments: seen.append((path, arguments))
        for name, sub in getattr(command, "commands", {}).items():
            idle(sub, f"{path} {name}".strip())

    command: Any = typer.main.get_command(app)
    for name in command.commands:
        command.get_command(None, name)
    idle(command, "")
    return command, seen


def taken(words: list[str]) -> tuple[str, dict[str, Any]]:
    """What the command line makes of words after `fallline`: the command, and its arguments. Nothing is run."""
    command, seen = idle_command_line()
    seen[:] = [("help", {})]
    command.main(args=words, prog_name="fallline", standalone_mode=False)
    return seen[-1]


def are_known(command: str, arguments: dict[str, Any]) -> None:
    """Names of tasks, optimizers, experiments and pictures are ones that there are; the reader's own files aside."""

    def told(key: str) -> list[str]:
        value = arguments.get(key) or []
        names = [name for name in value.split(",") if name != "all"] if isinstance(value, str) else value
        return [name for name in names if ":" not in name and ".py" not in name and not name.isupper()]

    if command in ("race", "plan", "train"):
        for name in told("optimizers") + told("optim"):
            get_contender(name)
        for name in arguments.get("tasks") or [arguments.get("task") or "digits"]:
            if ":" not in name and ".py" not in name:
                get_task(name)
    elif command == "repro" and arguments["claims"]:
        chosen(told("names"))
    elif command == "repro":
        for name in told("names"):
            get_experiment(name)
    elif command == "gallery":
        for name in told("names"):
            get_picture(name)


TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_command(words: list[str]) -> None:
    """Whether there is such a command, target, file or module."""
    if "fallline" in words:
        are_known(*taken(words[words.index("fallline") + 1 :]))
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
    elif words[0] == "python":
        module = words[words.index("-m") + 1] if "-m" in words else None
        there = importlib.util.find_spec(module) if module else (ROOT / words[1]).exists()
        assert there, f"there is no {module or words[1]}"


@pytest.mark.parametrize("page", sorted(page for page, typed in commands().items() if typed))
def test_every_command_of_a_page_is_one_that_there_is(page: str) -> None:
    for words in commands()[page]:
        try:
            check_command(words)
        except Exception as error:  # whatever the command line says
            raise AssertionError(f"{page}: {shlex.join(words)}: {error}") from error


def test_a_command_that_there_is_not_would_be_seen() -> None:
    for line, message in {
        "fallline rase": "No such command",
        "fallline race --sed 3": "No such option",
        "fallline race digit": "no task 'digit'",
        "fallline race --optimizers adamv": "no optimizer 'adamv'",
        "fallline repro koala": "no experiment 'koala'",
        "fallline gallery monalisa": "no picture 'monalisa'",
        "make coffee": "coffee",
        "python docs/none.py": "there is no docs/none.py",
    }.items():
        with pytest.raises(Exception, match=message):
            check_command(shlex.split(line))


CHEAP = [
    "fallline list",
    "fallline repro --list",
    "fallline check --list",
    "fallline new task my_task.py",
    "fallline data",
]


def test_commands_that_cost_nothing_are_run(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLLINE_DATA", str(alone))
    typed = {shlex.join(words) for page in commands().values() for words in page}
    for line in CHEAP:
        assert line in typed
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
    assert (alone / "my_task.py").exists()


# -- the site ---------------------------------------------------------------------------------------------------


class Places(HTMLParser):
    """What a page of the site refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.ids |= {named[key] or "" for key in ("id", "name") if key in named}
        (self.links if tag == "a" else self.loaded).extend(named[key] or "" for key in ("href", "src") if key in named)


def broken(site: Path, pages: dict[Path, Places]) -> Iterator[str]:
    """Links and files of pages that lead nowhere within the site."""
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not target.is_relative_to(site):
                yield f"{path.relative_to(site)}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.relative_to(site)}: {link}: no such place on the page"


def from_elsewhere(site: Path, pages: dict[Path, Places]) -> Iterator[str]:
    """What would be loaded from another host."""
    for path, page in pages.items():
        for link in page.loaded:
            if urlsplit(link).netloc:
                yield f"{path.relative_to(site)}: {link}"
    for path in [*site.rglob("*.css"), *site.rglob("*.svg"), *pages]:
        for found in re.findall(r"@import[^;]*|url\(['\"]?(?:https?:)?//[^)]*", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {found}"


def test_the_site_builds_strictly_and_stands_alone(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {
        path: Places(path.read_text(encoding="utf-8"))
        for path in tmp_path.rglob("*.html")
        if path.name != "404.html" and "page-data" not in path.parts
    }
    assert {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")} <= {
        path.relative_to(tmp_path) for path in pages
    }
    assert sorted({*from_elsewhere(tmp_path, pages)}) == []
    assert sorted({*broken(tmp_path, pages)}) == []
    equations = {path.stem: page.tags.count("math") for path, page in pages.items()}
    assert equations["optimizers"] > 20  # of the docstrings
    assert "arithmatex" not in "".join(path.read_text(encoding="utf-8") for path in pages)


# -- its parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", [r"\frac{1}", r"a \nosuchthing b"], ids=["incomplete", "unknown"])
def test_a_formula_that_cannot_be_shown_ends_the_build(formula: str) -> None:
    hooks = script("docs/site/hooks.py")
    page = f'<p>It is <span class="arithmatex">\\({formula}\\)</span>.</p>'
    with pytest.raises(hooks.PluginError, match=rf"koala\.md.*{re.escape(repr(formula))[1:-1]}"):
        hooks.FORMULA.sub(lambda found: hooks.mathml(found, "koala.md"), page)


def test_links_out_of_the_docs_lead_to_pages_and_code_is_left_alone() -> None:
    hooks = script("docs/site/hooks.py")
    links = hooks.LINKS
    links.places = {"src/fallline/koala.py": "source/src/fallline/koala.py.md", "docs/race.md": "race.md"}
    links.origins = {"koala.md": "docs/koala.md", "source/CHANGELOG.md": "CHANGELOG.md"}
    links.page = "koala.md"
    assert links.rewritten("../src/fallline/koala.py") == "source/src/fallline/koala.py.md"
    assert links.rewritten("race.md#why-so-many") == "race.md#why-so-many"
    assert links.rewritten("https://arxiv.org/abs/2107.03331") == "https://arxiv.org/abs/2107.03331"
    links.page = "source/CHANGELOG.md"
    assert links.rewritten("docs/race.md") == "../race.md"
    text = "[a](../a.py) `[b](../b.py)`\n\n```\n[c](../c.py)\n```\n\n[d](../d.py)\n"
    assert [found[0] for found in hooks.LINK.findall(hooks.CODE.sub("", text))] == ["../a.py", "../d.py"]


def test_docstrings_become_markdown() -> None:
    markdown = script("docs/site/docstrings.py").markdown
    text = "A.\n\n.. math:: a = b, \\quad\n          c = d\n\nSee :class:`LODO`, :func:`torch.compile`, :math:`x^2`."
    made = markdown(text, {"LODO"})
    assert "$$\na = b, \\quad c = d\n$$\n" in made
    assert made.endswith("See [`LODO`][fallline.LODO], `torch.compile`, $x^2$.")
