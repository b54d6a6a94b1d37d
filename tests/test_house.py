"""The house: which module may import which, and what a user gets who installs the wheel beside torch alone."""

import ast
import copy
import graphlib
import importlib
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import script

import fallline
from fallline.bench.cli import app as cli

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# --- arrows: who imports whom ---

FLOORS = """
__main__
papers.repro
papers.gallery papers.claims
papers.experiments
papers.records papers.perceptron
papers bench.cli
bench.report bench.race bench.check
bench.protocol
bench.runs
bench.contenders
bench.tasks
bench.tasks.data bench.tasks.networks bench.check.promises
bench.common bench
fallline
_registry
koala arturo lodo coolmomentum
_loss
_optimizer
_checkpoint kernels
_group _settings _shards
_engine
"""
"""All rooms of the house, which are packages and the loose modules of `fallline`. One imports only what lies lower."""

EXCEPTIONS: set[str] = set()
"""Imports that do not point downwards yet, as `module -> module`. One that is gone must go from here."""

house = script("dev/house.py")


def floor_of() -> dict[str, int]:
    """The floor of each room, counted from the top."""
    names = [line.split() for line in FLOORS.strip().splitlines()]
    return {
        "fallline" if name == "fallline" else f"fallline.{name}": number
        for number, line in enumerate(names)
        for name in line
    }


def wrong_arrows(graph: grimp.ImportGraph) -> set[str]:
    """The imports that do not lead to a lower floor, and those of the library that are not of torch."""
    floor, wrong = floor_of(), set()
    for (room, imported), found in house.arrows(graph).items():
        if not imported.startswith("fallline"):
            library = floor[room] >= floor["fallline"]
            bad = library and imported != "torch" and imported.partition(".")[0] not in sys.stdlib_module_names
        else:
            bad = floor[imported] <= floor[room]
        wrong.update(found if bad else ())
    return wrong


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Which module imports which, wherever in its text, read from the files."""
    return grimp.build_graph("fallline", include_external_packages=True, cache_dir=None)


def test_each_room_has_its_floor(graph: grimp.ImportGraph) -> None:
    rooms = {room for room in house.rooms(graph).values() if room.startswith("fallline")}
    assert rooms == floor_of().keys()


def test_arrows_point_downwards(graph: grimp.ImportGraph) -> None:
    assert wrong_arrows(graph) == EXCEPTIONS


def test_no_module_leads_back_to_itself(graph: grimp.ImportGraph) -> None:
    mine = sorted(module for module in graph.modules if module.startswith("fallline"))
    order = graphlib.TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in mine})
    order.prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("fallline.coolmomentum", "numpy"),
        ("fallline._loss", "fallline.bench.common.files"),
        ("fallline._loss", "fallline.koala.base"),
        ("fallline.koala.base", "fallline.arturo.arturo"),
        ("fallline.bench.report.page", "fallline.bench.race.store"),
        ("fallline.bench.race.store", "fallline.bench.check.trial"),
        ("fallline.bench.runs.run", "fallline.bench.protocol.design"),
        ("fallline.bench.cli.app", "fallline.papers.repro"),
        ("fallline.bench.common.files", "fallline.bench.tasks.bowl"),
    ],
)
def test_a_wrong_arrow_is_seen(graph: grimp.ImportGraph, module: str, imported: str) -> None:
    more = copy.deepcopy(graph)
    more.add_import(importer=module, imported=imported)
    assert wrong_arrows(more) - wrong_arrows(graph) == {f"{module} -> {imported}"}


def test_an_import_is_seen_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "__init__": "",
        "low": "",
        "late": "def f():\n    from made_up_house import low",
        "near": "from . import low",
    }
    (package := tmp_path / "made_up_house").mkdir()
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    built = grimp.build_graph("made_up_house", cache_dir=None)
    assert built.find_modules_that_directly_import("made_up_house.low") == {"made_up_house.late", "made_up_house.near"}


def private_names(source: str) -> list[str]:
    """The names of the library that a module outside of it uses, and that are not public."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found += [f"{module}.{alias.name}" for alias in names]
            case ast.Attribute(value=ast.Name(id="fallline"), attr=name):
                found.append(f"fallline.{name}")
    own = ("fallline.bench", "fallline.papers")
    return [one for one in found if re.match(r"fallline\b.*\._(?!_)", one) and not one.startswith(own)]


@pytest.mark.parametrize("folder", ["bench", "papers"])
def test_outside_of_the_library_its_public_names_are_used_alone(folder: str) -> None:
    files = sorted((SOURCE / "fallline" / folder).rglob("*.py"))
    found = {path.name: names for path in files if (names := private_names(path.read_text(encoding="utf-8")))}
    assert files
    assert found == {}


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("def f():\n    from fallline._loss import mean", ["fallline._loss.mean"]),
        ("from fallline import _loss", ["fallline._loss"]),
        ("import fallline\nfallline._loss.mean()", ["fallline._loss"]),
        ("from fallline.koala import _hidden", ["fallline.koala._hidden"]),
        ("from fallline import CoolMomentum, __version__", []),
        ("from fallline.bench.tasks._task import Batch", []),
    ],
)
def test_a_private_name_is_seen(source: str, private: list[str]) -> None:
    assert private_names(source) == private


def test_each_package_says_what_it_is_for_and_what_it_imports() -> None:
    for path in sorted((SOURCE / "fallline").rglob("__init__.py")):
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert re.search(r"\bimports\b", says, re.IGNORECASE), path
        assert len(says) > 60, path


# --- what the project says of itself ---


def test_all_names_what_is_public() -> None:
    public = {
        name
        for name in dir(fallline)
        if not name.startswith("_") and not isinstance(vars(fallline).get(name), ModuleType)
    }
    assert set(fallline.__all__) - {"__version__"} == public == fallline._HOMES.keys()
    for name, home in fallline._HOMES.items():
        assert getattr(fallline, name) is getattr(importlib.import_module(f"fallline.{home}"), name)
    with pytest.raises(AttributeError, match="no attribute 'Adam'"):
        fallline.Adam  # noqa: B018
    assert len(set(fallline.__all__)) == len(fallline.__all__)


def test_one_version(project: dict[str, Any]) -> None:
    cited = re.search(r"^version: *(\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited
    assert fallline.__version__ == project["version"] == cited[1]


def test_the_command_asks_for_what_its_extra_brings(project: dict[str, Any]) -> None:
    packages = importlib.metadata.packages_distributions()
    asked = {canonicalize_name(packages[module][0]) for module in cli.NEEDS}
    assert asked == {canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"]["bench"]}


def test_conda_gets_the_versions_that_were_tested() -> None:
    script = runpy.run_path(str(ROOT / "dev" / "environment.py"))
    assert (ROOT / "environment.yml").read_text() == script["environment"](), "python dev/environment.py"


def test_the_code_host_runs_what_anybody_can_run() -> None:
    """Its workflow has no steps of its own: the checks are .ci/run, the release is make release."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"^ +- run: (.*)$", workflow, re.MULTILINE) == [".ci/run", "make release"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.search(r"^release:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_requirement_is_pinned(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"==[^+*]+", str(pin.specifier)), pin
    pinned = {canonicalize_name(pin.name) for pin in pins}
    asked = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert {canonicalize_name(Requirement(text).name) for text in asked} - pinned == {"fallline"}


# --- the wheel, beside torch alone ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def beside_torch(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment that holds the wheel, torch, and what torch itself requires."""
    home = tmp_path_factory.mktemp("beside torch")
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    for distribution in required_by("torch"):
        # Links instead of a second installation: torch is hundreds of megabytes.
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():  # several distributions may share a namespace package
                (site / name).symlink_to(str(distribution.locate_file(name)))
    pip("--python", str(home / "bin/python"), "install", "--no-index", "--no-deps", str(wheel))
    return home / "bin"


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the new environment, in an empty place that shows it nothing of this tree."""
    hidden = ("PYTHON", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(command[0]).parent)


def required_by(name: str) -> list[importlib.metadata.Distribution]:
    """The distribution `name` and all that it requires, directly or not, on this machine."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [name]
    while todo:
        key = canonicalize_name(todo.pop())
        if key not in found:
            found[key] = importlib.metadata.distribution(key)
            needs = map(Requirement, found[key].requires or [])
            todo += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return list(found.values())


def test_the_wheel_holds_the_whole_package(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "fallline").rglob("*") if path.is_file()}
    assert shipped == {name for name in here if "__pycache__" not in name}
    assert "fallline/py.typed" in shipped
    assert any(name.startswith("fallline/bench/") and "html" in name for name in shipped), "the report's template"


STEPS = """
import importlib.util
import torch, fallline
from fallline import _registry

for name in ("numpy", "scipy", "sklearn", "plotly", "rich", "typer", "pytest"):
    assert importlib.util.find_spec(name) is None, name

for create in map(_registry._find, _registry.OURS):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = create([p])
    for _ in range(3):
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        optimizer.step(loss=loss.detach())
    assert 0 < p.square().sum() < 3, (create, p)
print(fallline.__file__)
"""


def test_the_library_needs_torch_alone(beside_torch: Path) -> None:
    done = run(beside_torch / "python", "-c", STEPS)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(beside_torch.parent)


def test_without_its_extra_the_command_says_what_to_install(beside_torch: Path) -> None:
    done = run(beside_torch / "fallline", "race")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # Before it torch says that numpy is not there.
    assert 'pip install "fallline[bench]"' in done.stderr.splitlines()[-1]


# --- the README ---


def test_the_readme_s_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
