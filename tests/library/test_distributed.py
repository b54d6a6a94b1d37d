"""Two processes equal one, and so do four: under DDP, in shards, after a checkpoint."""

import fcntl
import os
import time
from functools import partial
from pathlib import Path

import distributed_worker as cases
import pytest
import torch
from bits import assert_bits
from distributed_worker import ALONE, CASES, KOALAS, ONE_EACH, OTHERS, SUMMING, Ranks, Result

Results = dict[str, list[Result]]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process loads what two have saved

HUNG = 400  # seconds until processes that wait for each other are ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes leave behind. Under pytest-xdist the first worker to come runs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "3.pt").exists():
            (folder / "rendezvous").unlink(missing_ok=True)
            run(folder)
    return folder


def run(folder: Path) -> None:
    context = torch.multiprocessing.spawn(cases.worker, (str(folder),), nprocs=4, join=False)
    ends = time.monotonic() + HUNG
    while not context.join(timeout=1):  # raises what a process raises
        if time.monotonic() > ends:
            for process in context.processes:
                process.kill()
            pytest.fail(f"the processes have not come to an end in {HUNG} seconds")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """By name, of each rank that took part."""
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(4)]
    return {name: [rank[name] for rank in ranks if name in rank] for name in CASES | OTHERS}


def tolerance(name: str) -> float:
    return 1e-4 if "float32" in name else 1e-9


def assert_close(result: Result, one: Result, rtol: float) -> None:
    """Weights and shared scalars, those of one process."""
    assert result["numbers"] == pytest.approx(one["numbers"], rel=rtol, abs=rtol / 1000)
    for mine, wanted in zip(result["parameters"], one["parameters"], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=rtol / 1000)


def largest_difference(result: Result, one: Result) -> float:
    """Of a weight, relative to the largest of its tensor."""
    pairs = zip(result["parameters"], one["parameters"], strict=True)
    return max(float((mine - wanted).abs().max() / wanted.abs().max()) for mine, wanted in pairs)


def assert_equal_ranks(ranks: list[Result], size: int) -> None:
    """To the bit."""
    assert len(ranks) == size
    for other in ranks[1:]:
        assert_bits(ranks[0], other)


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process_and_each_other(name: str, results: Results) -> None:
    case, ranks = CASES[name], results[name]
    one = (case.alone or case.run)(ALONE)
    assert_equal_ranks(ranks, case.size)
    assert_close(ranks[0], one, tolerance(name))
    assert all(p.isfinite().all() for p in ranks[0]["parameters"])
    assert ranks[0]["numbers"].get("skipped", 0) == ("NaN" in name)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("resume")])
def test_what_two_ranks_saved_goes_on_in_one_process(name: str, folder: Path, results: Results) -> None:
    case = CASES[name]
    assert_close(case.run(Ranks(folder=str(folder))), case.alone(ALONE), 1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hand out")])
def test_what_four_ranks_collected_goes_on_in_one_process(name: str, folder: Path, results: Results) -> None:
    case = CASES[name]
    taken_in = partial(cases.taken_in, *case.run.args, **case.run.keywords)
    assert_close(taken_in(Ranks(folder=str(folder))), case.alone(ALONE), 1e-9)


# -- what would be seen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", KOALAS)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_loss_that_is_not_averaged_is_seen(way: str, method: str, results: Results) -> None:
    one = CASES[f"{way} {method}"].run(ALONE)
    first, second = results[f"{way} {method}, no mean of the loss"]
    assert min(largest_difference(rank, one) for rank in (first, second)) > 1e-3
    assert first["numbers"] != second["numbers"]  # the ranks have drifted apart


@pytest.mark.parametrize("method", SUMMING)
def test_a_sum_over_one_shard_alone_is_seen(method: str, results: Results) -> None:
    one = CASES[f"fsdp {method}"].run(ALONE)
    for rank in results[f"fsdp {method}, no sums over shards"]:
        assert not largest_difference(rank, one) < 1e-3  # some are NaN


@pytest.mark.parametrize("method", ["cool", "lodo"])
def test_a_nan_that_one_shard_alone_sees_is_seen(method: str, results: Results) -> None:
    first, second = results[f"fsdp {method}, no sums over shards, NaN in one shard"]
    assert first["numbers"]["skipped"] < second["numbers"]["skipped"]


# -- in a way of their own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ONE_EACH)
def test_ranks_that_share_nothing_are_as_alone(method: str, results: Results) -> None:
    ranks = results[f"by itself {method}"]
    assert len(ranks) == 4
    for number, rank in enumerate(ranks):
        assert_bits(rank, cases.by_itself(method, ALONE, number=number))


@pytest.mark.parametrize("method", ONE_EACH)
def test_two_pairs_of_ranks_train_two_models(method: str, results: Results) -> None:
    ranks = results[f"in pairs {method}"]
    for number in (0, 1):
        pair = ranks[2 * number : 2 * number + 2]
        assert_equal_ranks(pair, 2)
        assert_close(pair[0], cases.in_pairs(method, ALONE, number=number), 1e-9)


@pytest.mark.parametrize("method", ONE_EACH)
def test_gradients_in_half_precision_keep_the_ranks_together(method: str, results: Results) -> None:
    ranks = results[f"half {method}"]
    assert_equal_ranks(ranks, 2)
    assert ranks[0]["numbers"]["skipped"] == 0
    one = cases.sharded(method, ALONE, dtype=torch.float32)
    assert 1e-6 < largest_difference(ranks[0], one) < 0.2


@pytest.mark.parametrize("way", ["ddp", "hsdp"])
@pytest.mark.parametrize("method", ONE_EACH)
def test_stochastic_rounding_is_the_same_on_all_ranks(way: str, method: str, results: Results) -> None:
    ranks = results[f"{way} {method}, bfloat16, rounded stochastically"]
    assert_equal_ranks(ranks, len(ranks))
    assert ranks[0]["numbers"]["roundings"] == cases.STEPS
