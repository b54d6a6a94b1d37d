"""Tasks as people have them: workers that load, batches of any kind, undefined measures, losses below zero."""

import json
import math
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fallline.bench.identity import checksum
from fallline.bench.record import Store
from fallline.bench.results import results
from fallline.bench.tasks import examples, get_task, through
from fallline.bench.terminal import DATABASE
from fallline.bench.train import RUNAWAY, divergence, to_device

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
    "Batches from a process of the system's own kind, and from one that is spawned"
    def batches(self, order):
        for context in (None, "spawn"):
            yield from DataLoader(Rows(), 16, shuffle=True, generator=order, num_workers=1, collate_fn=collate,
                                  multiprocessing_context=context)
        yield from super().batches(order)
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
    "below": """
import torch
from fallline.bench.tasks import Task

class Below(Task):
    "A Gaussian likelihood: the loss falls from above zero to far below"
    steps, evaluations = 150, 4
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1536, 4, generator=g)
        y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])[:, None] * 0.1 + 0.01 * torch.randn(1536, 1, generator=g)
        self.parts = dict(zip(("train", "validation", "test"), zip(x.chunk(3), y.chunk(3))))
    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    def batches(self, order):
        x, y = self.parts["train"]
        while True:
            for b in torch.randperm(512, generator=order).split(64): yield x[b], y[b]
    def losses(self, model, batch):
        out = model(batch[0])
        nll = torch.nn.functional.gaussian_nll_loss
        return nll(out[:, :1], batch[1], out[:, 1:].exp(), reduction="none")[:, 0]
    def evaluate(self, model, split):
        return {"loss": self.losses(model, self.parts[split]).mean().item()}
""",
    "deeper": """
from below import Below

class Deeper(Below):
    "The same, a hundred lower: it begins below zero"
    def losses(self, model, batch): return super().losses(model, batch) - 100
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


@pytest.fixture(scope="module")
def raced(folder: Path) -> Any:
    tasks = [f"{name}.py" for name in TASKS if name != "small"]
    sizes = ["--trials", "3", "--seeds", "3", "--finalists", "1", "--jobs", "2", "--out", "runs"]
    run(folder, "race", *tasks, "--optimizers", "adamw,sgd", *sizes)
    with Store(folder / "runs" / DATABASE) as store:
        return results(store, store.last_race())


def test_they_race(raced: Any, folder: Path) -> None:
    assert raced.missing == 0
    for part in raced.parts:
        for entry in part.entries:
            assert entry.lost_seeds == 0, (part.task, entry.name)
            assert entry.lost_trials == 0 or entry.name == "sgd", part.task
            for outcome in entry.runs:  # a measure that comes late, or goes, has gaps
                assert len({len(curve) for curve in outcome.curve.values()}) == 1
    page = next((folder / "runs").glob("*.html")).read_text()
    assert "Undefined" in page or "undefined" in page


def test_below_zero_the_lower_loss_leads_in_every_aggregate(raced: Any) -> None:
    across = raced.across[0]
    below, deeper = (next(part for part in raced.parts if name in part.task) for name in ("below", "deeper"))
    for part in (below, deeper):
        assert [entry.name for entry in part.entries] == ["adamw", "sgd"]
        assert part.baseline.name == "adamw"
        assert part.get("sgd").verdict.difference.mean > 0
        assert part.behind(part.get("adamw").measure("loss").mean) == pytest.approx(0, abs=1e-9)
        assert part.behind(part.get("sgd").measure("loss").mean) > 0
        assert part.behind(part.initial) > 0.5
    # A constant beside the loss is nothing: optimizers see the same gradients, and so do the aggregates.
    for name in ("adamw", "sgd"):
        one, other = ([part.behind(loss) for loss in part.get(name).losses.values()] for part in (below, deeper))
        assert one == pytest.approx(other, rel=1e-2, abs=1e-4)
    assert set(across.iqm) == {"adamw", "sgd"}


@pytest.mark.parametrize("name", ["loader", "undefined", "penalty", "deeper"])
def test_they_train(folder: Path, name: str) -> None:
    out = folder / f"out-{name}"
    said = run(folder, "train", f"{name}.py", "--optim", "adamw", "--out", str(out))
    assert "Diverged" not in said
    for line in ((out / "result.json").read_text(), *(out / "metrics.jsonl").read_text().splitlines()):
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


# -- batches ---------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Rows:
    x: torch.Tensor
    names: list[str]


class Box:
    """A container of somebody's own."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device: str, **how: Any) -> "Box":
        return Box(self.x.to(device, **how))


X = torch.arange(8.0).view(4, 2)
BATCHES: dict[str, Any] = {
    "named tuple": Pair(X, X),
    "dataclass": Rows(X, ["a", "b"]),
    "nested": {"a": [X, (X, None, "text", 3)], "b": Pair(Rows(X, []), Box(X))},
    "packed": pack_sequence([X[:3], X[:2]]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_any_kind_go_to_a_device_and_keep_theirs(name: str) -> None:
    moved = to_device(BATCHES[name], "meta")
    assert type(moved) is type(BATCHES[name])
    seen: list[Any] = []
    through(seen.append, moved)
    tensors = [value.x if isinstance(value, Box) else value for value in seen]
    tensors = [value.data if isinstance(value, PackedSequence) else value for value in tensors]
    assert {value.device.type for value in tensors if isinstance(value, torch.Tensor)} == {"meta"}
    assert to_device(BATCHES[name], "cpu") is BATCHES[name]


def test_every_process_has_its_share_of_any_batch(folder: Path) -> None:
    class Batches(type(get_task(str(folder / "small.py")))):  # type: ignore[misc]
        def batches(self, order: torch.Generator) -> Any:
            yield self.one

    task = Batches()
    for name in ("named tuple", "dataclass"):
        task.one = BATCHES[name]
        first, second = (next(iter(task.shares(torch.Generator(), rank, 2))) for rank in (0, 1))
        assert type(first) is type(task.one)
        assert torch.equal(torch.cat([first.x, second.x]), X)
    for name in ("nested", "packed"):
        task.one = BATCHES[name]
        with pytest.raises(ValueError, match=r"cannot be cut.*shares"):
            next(iter(task.shares(torch.Generator(), 0, 2)))


def test_examples_are_counted_from_the_batch_where_the_loss_is_a_mean() -> None:
    assert examples(torch.ones(4), None) == 4
    assert examples(torch.tensor(1.0), BATCHES["named tuple"]) == 4
    assert examples(torch.tensor(1.0), BATCHES["nested"]) == 4
    assert examples(torch.tensor(1.0), "nothing to count") == 1


def test_what_a_dataclass_holds_belongs_to_the_data() -> None:
    class Data:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

        def data(self) -> Any:
            return [Rows(self.x, ["a"])]

    assert checksum(Data(X)) == checksum(Data(X.clone()))  # type: ignore[arg-type]
    assert checksum(Data(X)) != checksum(Data(X + 1))  # type: ignore[arg-type]


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
    code = "from fallline.bench.tasks import get_task; from fallline.bench.identity import checksum; "
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


# -- divergence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [2.0, 0.5, -92.0, -1e-3, 0.0])
def test_divergence_goes_by_the_size_of_the_loss_or_of_its_way(first: float) -> None:
    falling = torch.linspace(first, first - 2, 20)
    scale = max(abs(first), 2.0)
    for now, lost in ((first - 2, False), (first, False), (first + 900 * scale, False), (first + 1001 * scale, True)):
        assert (divergence(falling, {"train loss": now}) is not None) == lost, now
    assert divergence(torch.tensor([first, math.nan]), {"train loss": math.nan}) is not None


@pytest.mark.parametrize("loss", [0.1, 1.0, 7.0])
def test_of_positive_losses_it_is_the_multiple_of_the_first(loss: float) -> None:
    losses = torch.tensor([loss, 0.9 * loss, 0.5 * loss])
    assert divergence(losses, {"train loss": 0.999 * RUNAWAY * loss}) is None
    assert divergence(losses, {"train loss": 1.001 * RUNAWAY * loss}) is not None


def test_losses_that_are_zero_from_the_start_diverge_only_from_numbers() -> None:
    assert divergence(torch.zeros(3), {"train loss": 5.0}) is None
    assert divergence(torch.tensor([0.0, math.inf]), {"train loss": math.inf}) is not None
