"""A run's key follows all that makes its numbers, and nothing else."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fallline.bench.contenders import get_contender
from fallline.bench.race.coordinator import rundown
from fallline.bench.runs import identity
from fallline.bench.runs.identity import checksum, digest, fingerprint, run_key, sources
from fallline.bench.runs.run import Run
from fallline.bench.tasks import Task, _file, get_task

TASK = """
import json
import torch
from fallline.bench.tasks import Task
from pathlib import Path

class Mine(Task):
    steps = 5
    held_out = False

    def model(self):
        from layers import Layer
        return Layer()

    def batches(self, order):
        from constants import BATCH
        while True:
            yield torch.randn(BATCH, 1, generator=order)

    def losses(self, model, batch):
        return model(batch).square().squeeze(1)

    def data(self):
        return [torch.arange(3.0), Path(__file__).parent / "data.csv"]
"""
BESIDE = {
    "layers.py": "import deeper.below\nimport torch\nLayer = deeper.below.Layer\n",
    "deeper/__init__.py": "",
    "deeper/below.py": "import torch\n\nfrom . import sibling\n\n\ndef Layer():\n    return torch.nn.Linear(1, 1)\n",
    "deeper/sibling.py": "",
    "constants.py": "BATCH = 4\n",
    "unrelated.py": "print('never imported')\n",
    "data.csv": "1,2,3\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task in a file, what it imports, and its data."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lay_out(tmp_path / "here")


@pytest.fixture(autouse=True)
def _fresh():
    """What these tests import is forgotten, before and after."""
    forget()
    yield
    forget()


def forget():
    for name in list(sys.modules):
        top = name.split(".")[0]
        if top in ("layers", "deeper", "constants", "rule", "package", "helper") or top.startswith("fallline_file_"):
            del sys.modules[name]
    importlib.invalidate_caches()
    for function in (sources, checksum, _file._load):
        function.cache_clear()


def lay_out(folder, **texts):
    """The files, some of them with other texts."""
    for name, text in {"mine.py": TASK, **BESIDE, **texts}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def mark(folder, optimizer="sgd"):
    """The fingerprint of the task in a folder, as another process would work it out."""
    forget()
    sys.path[:] = [entry for entry in sys.path if Path(entry).name not in ("here", "there")]
    task, contender = get_task(str(folder / "mine.py")), get_contender(optimizer)
    return fingerprint(task, contender.make(task.model().parameters(), {}, 5), contender.make, rundown(contender))


EDITS = {
    "the task": ("mine.py", TASK.replace("square()", "abs()")),
    "its horizon": ("mine.py", TASK.replace("steps = 5", "steps = 6")),
    "a module that a function imports": ("layers.py", BESIDE["layers.py"] + "print\n"),
    "a module of which it takes a number alone": ("constants.py", "BATCH = 8\n"),
    "a module that such a module imports": ("deeper/below.py", BESIDE["deeper/below.py"] + "print\n"),
    "a module imported relatively": ("deeper/sibling.py", "print\n"),
    "a package's own module": ("deeper/__init__.py", "print\n"),
    "a tensor of its data": ("mine.py", TASK.replace("arange(3.0)", "arange(1.0, 4.0)")),
    "a file of its data": ("data.csv", "1,2,4\n"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_the_fingerprint_follows_what_a_task_is_made_of(edit, folder):
    before = mark(folder)
    name, text = EDITS[edit]
    assert (folder / name).read_text() != text
    (folder / name).write_text(text)
    assert mark(folder) != before


def test_the_fingerprint_does_not_follow_what_does_not_matter(folder, tmp_path, monkeypatch):
    before = mark(folder)
    assert mark(folder) == before
    (folder / "unrelated.py").write_text("print('something else')\n")
    (folder / "another.csv").write_text("4,5,6\n")
    assert mark(folder) == before
    monkeypatch.setattr(sys, "path", [*sys.path[::-1]])
    assert mark(folder) == before
    moved = tmp_path / "there"
    folder.rename(moved)
    assert mark(moved) == before


def test_the_fingerprint_does_not_follow_what_has_been_loaded_by_now(folder):
    before = mark(folder)
    forget()
    task, contender = get_task(str(folder / "mine.py")), get_contender("sgd")
    model = task.model()
    next(task.batches(torch.Generator()))  # which imports one more module
    assert fingerprint(task, contender.make(model.parameters(), {}, 5), contender.make, rundown(contender)) == before


def test_the_fingerprint_is_the_same_in_another_process(folder):
    program = (
        "import sys\nfrom fallline.bench.race.coordinator import code_behind\n"
        "from fallline.bench.runs.loop import Run\n"
        "print(code_behind(Run(sys.argv[1], 'koala-m', {'lr': 0.1}, 0)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(folder / "mine.py")], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == mark(folder, "koala-m")


def test_the_fingerprint_follows_the_optimizers_module_and_its_schedule(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    rule = "import torch\nfrom helper import FACTOR\n\n\nclass Rule(torch.optim.SGD):\n    factor = FACTOR\n"
    lay_out(folder, **{"rule.py": rule, "helper.py": "FACTOR = 1\n"})
    before = mark(folder, "rule:Rule")
    assert mark(folder, "rule:Rule") == before
    (folder / "helper.py").write_text("FACTOR = 2\n")
    after = mark(folder, "rule:Rule")
    assert after != before
    (folder / "rule.py").write_text(rule.replace("factor = FACTOR", "factor = -FACTOR"))
    assert mark(folder, "rule:Rule") not in (before, after)
    assert mark(folder, "sgd") != mark(folder, "sgd@constant")


def test_what_derives_from_ours_follows_our_library(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    lay_out(folder, **{"rule.py": "import fallline\n\n\nclass Rule(fallline.MomentumKOALA):\n    pass\n"})
    before = mark(folder, "rule:Rule"), mark(folder, "koala-m"), mark(folder, "sgd")
    monkeypatch.setattr(identity, "library_source", lambda: "another")
    after = mark(folder, "rule:Rule"), mark(folder, "koala-m"), mark(folder, "sgd")
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]


def test_the_fingerprint_follows_the_version_of_torch(folder, monkeypatch):
    before = mark(folder)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert mark(folder) != before


def test_a_task_of_a_package_follows_the_whole_package_that_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "package/__init__.py": "",
        "package/tasks/__init__.py": "",
        "package/tasks/one.py": TASK.replace("from layers import Layer", "from package.nets import Layer")
        .replace("from constants import BATCH", "BATCH = 4")
        .replace(', Path(__file__).parent / "data.csv"', ""),
        "package/nets.py": "import torch\n\n\ndef Layer():\n    return torch.nn.Linear(1, 1)\n",
        "package/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def found():
        forget()
        return sources(importlib.import_module("package.tasks.one").Mine)

    before = found()
    assert [line.split()[0] for line in before[1:]] == [
        "__init__.py",
        "nets.py",
        "tasks/__init__.py",
        "tasks/one.py",
        "torch",
    ]
    (tmp_path / "package/other.py").write_text("print\n")
    assert found() == before
    (tmp_path / "package/nets.py").write_text(files["package/nets.py"] + "print\n")
    assert found() != before


def test_installed_packages_go_by_their_versions_and_ours_by_the_task_alone():
    digits = [line.split()[0] for line in sources(type(get_task("digits")))[1:]]
    assert digits == ["_task.py", "digits.py", "sklearn", "torch"]
    import sklearn

    assert sources(type(get_task("digits")))[3] == f"sklearn {sklearn.__version__}"


def test_the_key_follows_settings_and_seed_and_not_the_order_of_settings():
    run = Run("digits", "sgd", {"lr": 0.1, "momentum": 0.9}, seed=1)
    keys = {
        run_key(run, "code"),
        run_key(dataclasses.replace(run, settings={"lr": 0.1, "momentum": 0.8}), "code"),
        run_key(dataclasses.replace(run, seed=2), "code"),
        run_key(dataclasses.replace(run, device="cuda"), "code"),
        run_key(run, "other code"),
    }
    assert len(keys) == 5
    assert run_key(dataclasses.replace(run, settings={"momentum": 0.9, "lr": 0.1}), "code") in keys


class Holding(Task):
    """Has the data that it is given."""

    steps = 1

    def __init__(self, *parts):
        self.parts = parts

    def data(self):
        return self.parts

    def model(self):
        raise NotImplementedError

    def batches(self, order):
        raise NotImplementedError

    def losses(self, model, batch):
        raise NotImplementedError


def hashed(*parts):
    return checksum(Holding(*parts))


class Frame:
    """As a data frame: something that numpy can make an array of."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values)


DIFFERENT = {
    "a tensor's values": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    "a tensor's precision": (torch.zeros(2, dtype=torch.float32), torch.zeros(1, dtype=torch.float64)),
    "a tensor's shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
    "bools": (torch.tensor([True, False]), torch.tensor([False, True])),
    "complex numbers": (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
    "a single number": (torch.tensor(1.0), torch.tensor(2.0)),
    "a sparse tensor": (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
    "an array": (np.arange(3), np.arange(1, 4)),
    "an array of texts": (np.array(["a", "b"], dtype=object), np.array(["a", "c"], dtype=object)),
    "a number of numpy's": (np.int64(1), np.int64(2)),
    "numbers in lists": ([1, 23], [12, 3]),
    "where a list ends": ([[1], 2], [[1, 2]]),
    "a text and a number": ("1", 1),
    "a range": (range(3), range(4)),
    "a set": ({"a", "b"}, {"a", "c"}),
    "a value by name": ({"a": 1}, {"a": 2}),
    "a name": ({"a": 1}, {"b": 1}),
    "something like a data frame": (Frame([1, 2]), Frame([1, 3])),
    "nothing": (None, 0),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_the_checksum_follows(what):
    one, other = DIFFERENT[what]
    assert hashed(one) == hashed(one)
    assert hashed(one) != hashed(other)


def test_the_checksum_does_not_follow_the_order_of_names_or_places_in_memory():
    assert hashed({"a": 1, "b": 2}) == hashed({"b": 2, "a": 1})
    assert hashed(torch.arange(6).view(2, 3).T) == hashed(torch.arange(6).view(2, 3).T.contiguous())
    assert hashed(np.array(["a"], dtype=object)) == hashed(np.array(["a"], dtype=object))
    assert hashed(object()) == hashed(object())
    assert hashed({"a", "b", "c"}) == hashed({"c", "b", "a"})


def test_the_checksum_follows_the_files_in_a_folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("one")
    before = hashed(tmp_path)
    assert hashed(tmp_path) == before
    (tmp_path / "below" / "a.txt").write_text("two")
    after = hashed(tmp_path)
    assert after != before
    (tmp_path / "below" / "a.txt").rename(tmp_path / "below" / "b.txt")
    assert hashed(tmp_path) not in (before, after)
    with pytest.raises(FileNotFoundError):
        hashed(tmp_path / "nowhere")


def test_no_two_lists_of_texts_have_one_hash():
    assert len({digest(parts) for parts in (["a", "b"], ["ab"], ["a", "", "b"], ["1:a"], ["a", "1:b"])}) == 5
