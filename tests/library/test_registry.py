"""Optimizers by name."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import fallline


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, 2))]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("koala-v", fallline.VanillaKOALA),
        ("KOALA-M", fallline.MomentumKOALA),
        ("koala-pp", fallline.KOALAPlusPlus),
        ("koala-metric", fallline.MetricKOALA),
        ("koala-orthogonal", fallline.OrthogonalKOALA),
        ("arTuRO", fallline.ArTuRO),
        ("LODO", fallline.LODO),
        ("coolmomentum", fallline.CoolMomentum),
        ("sgd", torch.optim.SGD),
        ("AdamW", torch.optim.AdamW),
        ("torch.optim:RAdam", torch.optim.RAdam),
        ("fallline.koala.vanilla:VanillaKOALA", fallline.VanillaKOALA),
    ],
)
def test_a_name_makes_its_optimizer(name: str, cls: type) -> None:
    optimizer = fallline.create_optimizer(name, params(), lr=0.125)
    assert type(optimizer) is cls
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_every_listed_name_is_found() -> None:
    names = fallline.list_optimizers()
    koalas = ["koala-m", "koala-metric", "koala-orthogonal", "koala-pp", "koala-v"]
    assert names[:8] == ["arturo", "coolmomentum", *koalas, "lodo"]
    assert {"sgd", "adamw", "muon"} <= set(names)
    assert len(names) == len(set(names))
    for name in names:
        if name != "sparseadam":  # takes sparse gradients only, and says so of its own
            assert isinstance(fallline.create_optimizer(name, params()), torch.optim.Optimizer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("koala-w", "did you mean 'koala-"),
        ("adamv", "did you mean 'adam"),
        ("zzzz", "list_optimizers"),
        ("no_such_package:Thing", "No module named 'no_such_package'"),
        ("torch.optim:Thing", "the module torch.optim has no 'Thing'; it has ASGD, "),
        ("torch.optim:adamw", "did you mean 'AdamW'"),
        ("torch.optm:AdamW", "did you mean 'torch.optim'"),
        ("torhc.optim:AdamW", "did you mean 'torch.optim'"),
        ("torch.optim.adamm:Adam", "did you mean 'torch.optim.adam'"),
        ("torch.nn:Optimiser", "the module torch.nn has no 'Optimiser'; it has no optimizer"),
        ("..here:Thing", "no optimizer '..here:Thing'"),
        ("torch.nn:Linear", "no subclass of torch.optim.Optimizer"),
        (":", "no optimizer ':'"),
    ],
)
def test_an_unknown_name_is_answered(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fallline.create_optimizer(name, params())


def test_import_is_free_of_the_bench_and_the_compiler() -> None:
    late = {"fallline.bench", "torch._dynamo", "torch.distributed.tensor"}
    code = f"import sys, fallline; assert not {late} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
