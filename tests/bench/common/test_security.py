"""Nothing that is read is run: checkpoints, databases, data sets and reports from elsewhere are data."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from staged import stage
from terminal import call

import fallline
from fallline.bench.race.store import Store
from fallline.bench.runs.checkpoint import load

PACKAGE = Path(fallline.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
RUNS_CODE = {
    "_engine/triton.py": {"exec_module"},  # what it wrote itself, under a name that is the text's hash
    "bench/check/child.py": {"exec"},  # the header that it wrote itself
    "bench/check/trial.py": {"exec"},  # the promises' own texts
    "bench/race/workers.py": {"eval"},  # a constant
    "bench/tasks/_file.py": {"exec"},  # the task that the user names on the command line
}
READS_OBJECTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(getattr(node.func, "attr", getattr(node.func, "id", "")), node) for node in found]


def given(node: ast.Call) -> dict[str | None, object]:
    return {one.arg: getattr(one.value, "value", None) for one in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_of_the_package_reads_code_from_data(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith("bench/check/promises/"):
        return  # reproductions pickle what they have just made
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not READS_OBJECTS & {module.split(".")[0] for module in modules}, ast.unparse(node)
    for called, node in calls(tree):
        if called in ("eval", "exec") and isinstance(node.func, ast.Attribute):
            continue  # model.eval()
        if called in ("eval", "exec", "exec_module"):
            assert called in RUNS_CODE.get(name, ()), ast.unparse(node)
        if called == "load" and ast.unparse(node.func) == "torch.load":
            assert given(node).get("weights_only") is True, ast.unparse(node)
        assert given(node).get("allow_pickle") is not True, ast.unparse(node)
        assert given(node).get("shell") is not True, ast.unparse(node)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_in_it_is_not_gone_on_from(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "key.pt"
    torch.save({"plan": {"task": "digits"}, "model": Trap(touched)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert touched.exists()


@pytest.mark.parametrize("form", ["html", "md", "csv"])
def test_a_stranger_s_database_imports_nothing(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is a name in it, and names may be modules and files: they are run in a race, and never for a report."""
    (tmp_path / "trap_of_tasks.py").write_text("open('touched', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = tmp_path / "runs" / "fallline.sqlite"
    name.parent.mkdir()
    losses = {"sgd": [0.5, 0.6, 0.7], "adamw": [0.4, 0.3, 0.2]}
    for task in ("trap_of_tasks:Task", "trap_of_tasks.py:Task"):
        with Store(name) as store:
            stage(store, losses, name=task, tasks=(task,))
        with Store(tmp_path / "other.sqlite") as store:
            stage(store, losses, name=f"other {task}", tasks=(task,))
        for words in (
            ("report", "--out", "runs", "--format", form, "--against", "other.sqlite"),
            ("merge", str(name), "other.sqlite"),
        ):
            code, output = call(*words)
            assert code == 0, output
    assert "trap_of_tasks" not in sys.modules
    assert not (tmp_path / "touched").exists()
    assert any("trap_of_tasks" in path.read_text(encoding="utf-8") for path in (tmp_path / "runs").rglob("*.html")) or (
        form != "html"
    )
