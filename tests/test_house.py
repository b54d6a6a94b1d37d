"""The house: which module may import which, and what a user gets who installs the wheel beside torch alone."""

import ast
import graphlib
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
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fallline
from fallline.bench.cli import app as cli

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# --- arrows: tests -> fallline.bench -> fallline -> torch ---


def imports(path: Path, source: str) -> Iterator[str]:
    """Everything that `source` imports, at any depth, as absolute dotted names: `from a import b` gives `a.b`.

    `path` is the file's, relative to src: it resolves relative imports. Private attributes that are reached through
    the package, as in `fallline._loss`, count as imported.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = [*path.parts[: len(path.parts) - level], *([module] if module else [])] if level else [module]
                yield from (".".join([*origin, alias.name]) for alias in names)
            case ast.Attribute(value=ast.Name(id="fallline"), attr=attribute) if attribute.startswith("_"):
                yield f"fallline.{attribute}"


def wrong_arrows(path: Path, source: str) -> list[str]:
    """The imports that a file of src must not have."""
    in_bench = path.parts[:2] in (("fallline", "bench"), ("fallline", "__main__.py"))  # the latter is its command
    wrong = []
    for name in imports(path, source):
        root, *inner = name.split(".")
        to_bench = root == "fallline" and inner[:1] == ["bench"]
        if in_bench:
            private = any(part.startswith("_") and not part.endswith("__") for part in inner)
            bad = root == "fallline" and private and not to_bench
        else:
            bad = to_bench or (root not in {"fallline", "torch"} and root not in sys.stdlib_module_names)
        if bad:
            wrong.append(name)
    return wrong


MODULES = {path.relative_to(SOURCE): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_arrows_point_one_way(path: Path) -> None:
    assert wrong_arrows(path, MODULES[path]) == []


def test_no_module_leads_back_to_itself() -> None:
    def dotted(path: Path) -> str:
        return ".".join(path.with_suffix("").parts).removesuffix(".__init__")

    modules = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path, source in MODULES.items():
        names = {name if name in modules else name.rpartition(".")[0] for name in imports(path, source)}
        graph[dotted(path)] = names & modules
    assert "torch" not in graph
    assert graph["fallline"], "the package imports its modules, so the graph has edges"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("fallline/made_up.py", "import numpy as np", "numpy"),
        ("fallline/made_up.py", "def f():\n    from scipy import stats", "scipy.stats"),
        ("fallline/made_up.py", "import torch\nimport fallline.bench", "fallline.bench"),
        ("fallline/made_up.py", "from fallline import bench", "fallline.bench"),
        ("fallline/made_up.py", "from .bench.cli import main", "fallline.bench.cli.app.main"),
        ("fallline/made_up.py", "from . import bench", "fallline.bench"),
        ("fallline/bench/made_up.py", "from fallline._loss import mean", "fallline._loss.mean"),
        ("fallline/bench/made_up.py", "from fallline import _loss", "fallline._loss"),
        ("fallline/bench/made_up.py", "import fallline\nfallline._loss.mean()", "fallline._loss"),
        ("fallline/bench/tasks/made_up.py", "from ..._loss import mean", "fallline._loss.mean"),
    ],
)
def test_a_wrong_arrow_is_seen(path: str, source: str, wrong: str) -> None:
    assert wrong_arrows(Path(path), source) == [wrong]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fallline/made_up.py", "import math\nfrom torch import Tensor\nfrom ._loss import mean\nfrom . import koala"),
        ("fallline/bench/made_up.py", "import numpy\nfrom fallline import CoolMomentum, __version__"),
        ("fallline/bench/tasks/made_up.py", "from ._task import Task\nfrom fallline.bench.tasks._task import Batch"),
    ],
)
def test_a_right_arrow_passes(path: str, source: str) -> None:
    assert wrong_arrows(Path(path), source) == []


# --- what the project says of itself ---


def test_all_names_what_is_public() -> None:
    public = {
        name for name, value in vars(fallline).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(fallline.__all__) - {"__version__"} == public
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

for name in ("numpy", "scipy", "sklearn", "plotly", "rich", "typer", "pytest"):
    assert importlib.util.find_spec(name) is None, name

for create in map(fallline._registry._find, fallline._registry.OURS):
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
