"""Two processes equal one."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fallline
from bits import assert_bits
from fallline import LODO, ArTuRO, CoolMomentum, KOALAPlusPlus, MomentumKOALA, VanillaKOALA
from problem import METHODS, Net, scalars

FORMS = ["loss", "observe", "stages"]
DDP_STEPS = 5
BROKEN_STEP = 2


def run_distributed(method: str, form: str, rank: int | None, broken: bool = False) -> dict[str, Any]:
    """Train in one process on the whole batch (rank None), or under DDP on this rank's half of it."""
    net = Net()
    optimizer = METHODS[method](net.parameters(), weight_decay=0.01)
    model = net if rank is None else nn.parallel.DistributedDataParallel(net)
    examples = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    for t in range(DDP_STEPS):
        if form == "stages":
            optimizer.predict()
        optimizer.zero_grad()
        losses = model(t, examples)
        if broken and t == BROKEN_STEP and rank in (1, None):
            losses = losses * math.nan
        if form == "observe":
            losses = optimizer.observe(losses)
        losses.mean().backward()
        if form == "stages":
            optimizer.update(losses)
        else:
            optimizer.step(**({"loss": losses} if form == "loss" else {}))
    numbers = scalars(optimizer) | {"skipped": int(optimizer.skipped)}
    return {"parameters": [p.detach() for p in net.blocks], "scalars": numbers}


# Slopes that differ much, so that the multiplier's lower bound without Newton is the maximum over single weights.
UNEVEN = dict(filter_var_init=10.0, process_noise=1e-4, process_noise_quad=10.0, measurement_noise=0.01, var_init=1.0)

SHARDED: dict[str, Callable[[list[nn.Parameter]], fallline.Optimizer]] = {
    "V": lambda params: VanillaKOALA(params, weight_decay=0.01),
    "M": lambda params: MomentumKOALA(params, weight_decay=0.01, average_init="zeros"),
    "++": lambda params: KOALAPlusPlus(params, weight_decay=0.01),
    "++ vanilla": lambda params: KOALAPlusPlus(params, symmetric=False),
    "cool": lambda params: CoolMomentum(params, lr=0.05, cool_steps=9, weight_decay=0.01, skip_nonfinite=True),
    "arturo": lambda params: ArTuRO(params, lr=0.05, weight_decay=0.01),
    "arturo groups": lambda params: ArTuRO(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}], lr=0.05, weight_decay=0.01
    ),
    "lodo": lambda params: LODO(params, lr=0.1, meta_lr=0.01, depth=4, weight_decay=0.01),
    "lodo buckets": lambda params: LODO(params, lr=0.1, meta_lr=0.01, depth=2, bucket_size=8),
    "arturo start": lambda params: ArTuRO(params, lr=1.0, newton_iters=0, **UNEVEN),
}


def run_sharded(method: str, rank: int | None, broken: str = "") -> dict[str, Any]:
    """The same under FSDP2, parameters in two shards; one has 3 rows, so that the shards are uneven.

    Broken may be one rank's "loss", which backward spreads over all shards, or a "gradient" in one shard only.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    if rank is not None:
        mesh = init_device_mesh("cpu", (2,))
        for module in (model[0], model[2], model):
            fully_shard(module, mesh=mesh)
    optimizer = SHARDED[method](list(model.parameters()))
    examples = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    for t in range(DDP_STEPS):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)[examples]
        optimizer.zero_grad()
        losses = (model(x) - x[:, :3]).square().mean(1)
        breaks = broken if t == BROKEN_STEP and rank in (1, None) else ""
        if breaks == "loss":
            losses = losses * math.nan
        losses.mean().backward()
        if breaks == "gradient":
            g = model[0].weight.grad
            (g.to_local() if isinstance(g, DTensor) else g)[-1, 0] = math.nan
        optimizer.step(loss=losses.detach())
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    readings = [float(optimizer.eta), float(optimizer.kl)] if isinstance(optimizer, ArTuRO) else []
    return {
        "parameters": [p.detach().clone() for p in whole],
        "skipped": int(optimizer.skipped),
        "readings": readings,
    }


def distributed_worker(rank: int, folder: str) -> None:
    """One of two processes: every method and form under DDP."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # DDP's own
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {f"{m} {f}": run_distributed(m, f, rank) for m in METHODS for f in FORMS}
    results |= {f"{m} broken": run_distributed(m, "loss", rank, broken=True) for m in METHODS}
    results |= {f"{m} sharded": run_sharded(m, rank) for m in SHARDED}
    results |= {f"{m} sharded broken {b}": run_sharded(m, rank, b) for m in SHARDED for b in ("loss", "gradient")}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of the two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(distributed_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def close(results: dict[str, Any], one: dict[str, Any]) -> None:
    """The weights of one process."""
    for mine, wanted in zip(results["parameters"], one["parameters"], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(method: str, form: str, two_ranks: list[dict[str, Any]]) -> None:
    one = run_distributed(method, form, rank=None)
    first, second = (ranks[f"{method} {form}"] for ranks in two_ranks)
    assert_bits(first["parameters"], second["parameters"])
    assert first["scalars"] == second["scalars"]
    assert first["scalars"] == pytest.approx(one["scalars"], rel=1e-9)
    close(first, one)


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_s_nan_skips_the_step_on_both(method: str, two_ranks: list[dict[str, Any]]) -> None:
    one = run_distributed(method, "loss", rank=None, broken=True)
    first, second = (ranks[f"{method} broken"] for ranks in two_ranks)
    assert_bits(first["parameters"], second["parameters"])
    assert first["scalars"] == second["scalars"]
    assert first["scalars"] == pytest.approx(one["scalars"], rel=1e-9)
    assert first["scalars"]["skipped"] == 1
    assert all(p.isfinite().all() for p in first["parameters"])
    close(first, one)


@pytest.mark.parametrize("method", SHARDED)
def test_two_shards_equal_one_process(method: str, two_ranks: list[dict[str, Any]]) -> None:
    one = run_sharded(method, rank=None)
    first, second = (ranks[f"{method} sharded"] for ranks in two_ranks)
    assert_bits(first["parameters"], second["parameters"])
    assert first["readings"] == second["readings"]
    assert first["readings"] == pytest.approx(one["readings"], rel=1e-9)
    close(first, one)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("method", SHARDED)
def test_one_rank_s_nan_skips_the_step_of_both_shards(
    method: str, broken: str, two_ranks: list[dict[str, Any]]
) -> None:
    one = run_sharded(method, rank=None, broken=broken)
    for rank in two_ranks:
        results = rank[f"{method} sharded broken {broken}"]
        assert results["skipped"] == one["skipped"] == 1
        assert all(p.isfinite().all() for p in results["parameters"])
        close(results, one)
