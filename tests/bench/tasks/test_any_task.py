"""What a user's task may be: derivatives in its losses, data loaders, odd measures, batches of any kind."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fallline.bench.cli.terminal import DATABASE
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.runs.identity import _take_in
from fallline.bench.runs.loop import to_device, train
from fallline.bench.runs.run import Outcome, Run, record
from fallline.bench.tasks import check, get_task
from fallline.bench.tasks._task import _share

TASK = '''
import torch
from torch.utils.data import Dataset
from fallline.bench.tasks import Task

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

class Rows(Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return X[i], X[i].sum(0, keepdim=True)

class Small(Task):
    """A line."""
    steps, evaluations = 8, 4
    def model(self): return torch.nn.Linear(4, 1)
    def batches(self, order):
        while True:
            for rows in torch.randperm(64, generator=order).split(16):
                yield X[rows].clone()
    def losses(self, model, x):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (model(x)[:, 0] - x.sum(1)).square() + (slope - 1).square().mean(1)
    def evaluate(self, model, split):
        loss = self.losses(model, X.clone()).mean()
        return {"loss": loss, "AUC": float("nan"), ("a", 1): torch.tensor(True), "huge": 1e308}
'''

Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Batch:
    """Two tensors."""

    x: Tensor
    y: Tensor


def test_losses_and_measures_may_take_derivatives(tmp_path: Path) -> None:
    (tmp_path / "slope_task.py").write_text(TASK)
    name = str(tmp_path / "slope_task.py")
    check(get_task(name))
    outcome = train(Run(name, "adamw", {"lr": 0.1}, 0, test=True))
    assert outcome.status == "finished"
    assert outcome.score is not None
    assert outcome.score < outcome.curve["validation loss"][0]  # type: ignore[operator]
    assert outcome.curve["validation AUC"] == [None] * 5
    assert outcome.result.keys() == {"loss", "('a', 1)", "huge"}


def test_measures_that_come_and_go_leave_columns_of_one_length() -> None:
    outcome = Outcome("finished", steps=0)
    for more in ({"early": 1.0}, {"late": 2.0}, {"late": math.inf}):
        record(outcome, more)
    assert outcome.curve["early"] == [1.0, None, None]
    assert outcome.curve["late"] == [None, 2.0, None]
    assert {len(column) for column in outcome.curve.values()} == {3}


def test_a_started_process_can_unpickle_what_a_task_file_defines(tmp_path: Path) -> None:
    """As the worker of a data loader does, which has no more than the places where modules are looked for."""
    for folder, size in (("one", 64), ("other", 32)):  # two files of one stem
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "twice_named.py"
        path.write_text(TASK.replace("return 64", f"return {size}"))
        rows = sys.modules[type(get_task(str(path))).__module__].Rows()
        code = f"import sys, pickle; sys.path[:] = {sys.path}; print(len(pickle.loads({pickle.dumps(rows)})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(done.stdout) == size


@pytest.mark.parametrize("kind", [Pair, Batch, lambda x, y: {"x": x, "y": [y]}])
def test_batches_of_any_kind_are_moved_cut_and_hashed(kind) -> None:  # type: ignore[no-untyped-def]
    batch = kind(torch.arange(4.0), torch.ones(4, 2))
    moved, cut = to_device(batch, "meta"), _share(batch, 1, 2)
    assert type(moved) is type(cut) is type(batch)
    get = (lambda value: value["x"]) if isinstance(batch, dict) else (lambda value: value.x)
    assert get(moved).device.type == "meta"
    assert get(cut).tolist() == [2.0, 3.0]
    taken: list[str] = []
    for one in (batch, kind(torch.arange(4.0) + 1, torch.ones(4, 2))):
        total = hashlib.sha256()
        _take_in(total, one)
        taken.append(total.hexdigest())
    assert taken[0] != taken[1]


def test_a_task_that_exits_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "leaving_task.py").write_text(TASK.replace("return torch.nn.Linear(4, 1)", "raise SystemExit(3)"))
    with pytest.raises(ValueError, match=r"leaving_task.py, line \d+: SystemExit: 3"):
        check(get_task(str(tmp_path / "leaving_task.py")))


# -- the commands, on files --------------------------------------------------------------------------------------

SMALL = """
import torch
from fallline.bench.tasks import Task

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

class Small(Task):
    "What the others begin with"
    steps, evaluations = 20, 4
    def model(self): return torch.nn.Linear(4, 1)
    def batches(self, order):
        while True:
            for rows in torch.randperm(64, generator=order).split(16):
                yield X[rows], X[rows].sum(1, keepdim=True)
    def losses(self, model, batch): return (model(batch[0]) - batch[1]).square().mean(1)
    def evaluate(self, model, split): return {"loss": self.losses(model, (X, X.sum(1, keepdim=True))).mean().item()}
"""
TASKS = {
    "small": SMALL,
    "loader": """
from torch.utils.data import DataLoader, Dataset
from small import Small, X
import torch

class Rows(Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return X[i], X[i].sum(0, keepdim=True)

def collate(rows): return tuple(map(torch.stack, zip(*rows)))

class Loaded(Small):
    "Batches from another process, out of a data set of the task's file"
    def batches(self, order):
        while True:
            yield from DataLoader(Rows(), 16, shuffle=True, generator=order, num_workers=1, collate_fn=collate)
""",
    "undefined": """
from small import Small

class Undefined(Small):
    "Measures that are not defined, too large, or come and go"
    calls = 0
    def evaluate(self, model, split):
        Undefined.calls += 1
        more = {"AUC": float("nan"), "large": 1e308, "infinite": float("inf")}
        return {**super().evaluate(model, split), **more, **({"late": 1.0} if Undefined.calls > 6 else {})}
""",
    "penalty": """
import torch
from fallline.bench.tasks import Task

class Penalty(Task):
    "A loss with a derivative in it"
    steps, held_out = 50, False
    def model(self): return torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    def batches(self, order):
        while True: yield torch.rand(32, 1, generator=order)
    def losses(self, model, x):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope - x.cos()).square()[:, 0]
""",
    "prints": """
import os
from small import Small

class Prints(Small):
    "A model that prints, by Python and past it"
    def losses(self, model, batch):
        print("a line of Python's")
        os.write(1, b"a line of the system's" + bytes([10]))
        return super().losses(model, batch)
""",
    "forks": """
import os
from small import Small

class Forks(Small):
    "Comes back from both sides of a fork"
    calls = 0
    def losses(self, model, batch):
        Forks.calls += 1
        if Forks.calls == 5: os.fork()
        return super().losses(model, batch)
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    for name, code in TASKS.items():
        (place / f"{name}.py").write_text(code)
    return place


def run(folder: Path, *words: str) -> str:
    """A command of fallline's in the tasks' folder; what it says."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "fallline", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    return said


def test_they_race_and_train(folder: Path) -> None:
    names = [name for name in TASKS if name != "small"]
    sizes = ["--trials", "2", "--seeds", "2", "--finalists", "1", "--jobs", "2", "--out", "runs"]
    said = run(folder, "race", *(f"{name}.py" for name in names), "--optimizers", "adamw,koala-m", *sizes)
    with Store(folder / "runs" / DATABASE) as store:
        race = store.last_race()
        assert race is not None
        found = results(store, race)
    assert found.missing == 0
    for part in found.parts:
        for entry in part.entries:
            assert entry.failed_seeds == entry.failed_trials == 0, (part.task, entry.name)
            for outcome in entry.runs:  # a measure that comes late, or goes, has gaps
                assert len({len(curve) for curve in outcome.curve.values()}) == 1
    printed = (folder / "runs" / "printed.txt").read_text()
    assert "a line of Python's" in printed
    assert "a line of the system's" in printed
    assert "printed.txt" in said
    assert "a line of" not in said.partition("runs, ")[2]  # once the display has begun
    for name in ("loader", "undefined", "forks"):
        out = folder / f"out-{name}"
        assert "Diverged" not in run(folder, "train", f"{name}.py", "--optim", "adamw", "--out", str(out))
        for line in ((out / "result.json").read_text(), *(out / "metrics.jsonl").read_text().splitlines()):
            json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


READS = """
import json, pathlib
from small import Small
RATES = json.loads((pathlib.Path(__file__).parent / "rates.json").read_text())
class Reads(Small):
    "Reads files beside it: in its module, as it is made, and with its first batch"
    def __init__(self): self.scale = float(open(pathlib.Path(__file__).with_name("scale.txt")).read())
    def batches(self, order):
        pathlib.Path(__file__).with_name("noise.yaml").read_text()
        yield from super().batches(order)
"""


def test_files_that_a_task_reads_belong_to_its_identity(folder: Path) -> None:
    """One process a look: the task is read anew."""
    (folder / "reads.py").write_text(READS)
    files = {"rates.json": "[1, 2]", "scale.txt": "0.5", "noise.yaml": "a: 1", "other.txt": "is not read"}
    for name, text in files.items():
        (folder / name).write_text(text)
    code = "from fallline.bench.tasks import get_task; from fallline.bench.runs.identity import checksum; "
    code += "print(checksum(get_task('reads.py')))"

    def look() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    before = look()
    assert look() == before
    for name, text in files.items():
        (folder / name).write_text(text.replace("1", "3").replace("0.5", "0.25").replace("is", "was"))
        assert (look() == before) == (name == "other.txt"), name
        (folder / name).write_text(text)
