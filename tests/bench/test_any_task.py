"""What a user's task may be: derivatives in its losses, data loaders, odd measures, batches of any kind."""

import hashlib
import math
import pickle
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fallline.bench.identity import _take_in
from fallline.bench.tasks import check, get_task
from fallline.bench.tasks._task import _share
from fallline.bench.train import Outcome, Run, record, to_device, train

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
