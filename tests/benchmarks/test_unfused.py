"""The unfused methods: they take the library's trajectories, by as many passes as their docstrings say."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problem import batch_losses, start
from scripts import script
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fallline import ArTuRO, CoolMomentum, KOALAPlusPlus, MomentumKOALA, VanillaKOALA
from speed.methods import all_methods, chosen

FILE = Path(__file__).parents[2] / "benchmarks" / "unfused.py"
unfused = script("benchmarks/unfused.py")

SIZE, TENSORS = 1000, 3


class Passes(TorchDispatchMode):
    """Counts what moves whole tensors, of SIZE elements: words, new tensors; and what the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = self.temporaries = self.syncs = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.syncs += name in {"_local_scalar_dense", "nonzero", "equal"}
        self.copies += name == "lift_fresh"  # a tensor made of numbers of the host
        fills = name.endswith("_like") or name in {"fill_", "zero_"}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if large(given.get(argument.name)):
                alias = argument.alias_info
                view, written = (alias is not None and alias.is_write is w for w in (False, True))
                self.words += written + (not view and not fills and not argument.is_out)
        results = result if isinstance(result, tuple | list) else [result]
        for value, returned in zip(results, func._schema.returns, strict=False):
            if large(value) and returned.alias_info is None:
                self.words += 1
                self.temporaries += 1
        return result


def large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == SIZE


def test_the_count_of_passes_is_right_for_known_operations() -> None:
    a, b = torch.randn(2, SIZE)
    for work, words, temporaries in [
        (lambda: a + b, 3, 1),
        (lambda: a.add_(b, alpha=2), 3, 0),
        (lambda: a.mul_(2), 2, 0),
        (lambda: torch.add(a, b, out=a), 3, 0),
        (lambda: torch.dot(a.view(10, 100).flatten(), b), 2, 0),
        (lambda: torch.linalg.vector_norm(a), 1, 0),
        (lambda: torch.ones_like(a), 1, 1),
        (lambda: a.sum() * torch.ones(()), 1, 0),
    ]:
        with Passes() as passes:
            work()
        assert (passes.words, passes.temporaries, passes.syncs, passes.copies) == (words, temporaries, 0, 0)
    with Passes() as passes:
        if a.sum() > torch.tensor(0.0):
            a.sum().item()
        else:
            float(b.sum())
    assert (passes.words, passes.temporaries, passes.syncs, passes.copies) == (2, 0, 2, 1)


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], t: int) -> None:
    """One step on batch t."""
    optimizer.zero_grad()
    losses = batch_losses(params, t)
    losses.mean().backward()
    optimizer.step(loss=losses.detach())  # type: ignore[call-arg]


def noise(plain: Any, ours: Any) -> list[tuple[Any, Any]]:
    return [(plain.R, ours.measurement_noise)]


PAIRS: list[tuple[str, type, dict[str, Any], Callable[[Any, Any], list[tuple[Any, Any]]], dict[str, Any]]] = [
    ("PlainCoolMomentum", CoolMomentum, {}, lambda plain, ours: [], {"lr": 0.1, "rho_0": 0.9, "cool_steps": 15}),
    (
        "PlainVanillaKOALA",
        VanillaKOALA,
        {"weight_decay_mode": "reference"},
        lambda plain, ours: [*noise(plain, ours), (plain.P, ours.covariance)],
        {"sigma": 0.1},
    ),
    (
        "PlainMomentumKOALA",
        MomentumKOALA,
        {"q_rule": "reference", "average_init": "zeros"},
        lambda plain, ours: [*noise(plain, ours), (plain.P, ours.covariance), (plain.qx, ours.process_noise)],
        {"lr": 0.9},
    ),
    ("PlainKOALAPlusPlus", KOALAPlusPlus, {}, noise, {"sigma": 0.5, "q": 0.5, "lr": 2.0}),
    (
        "PlainArTuRO",
        ArTuRO,
        {"solver": "bisect", "curvature_floor": -math.inf},
        lambda plain, ours: [(plain.eta, ours.eta)],
        {"lr": 0.05, "process_noise": 0.05},
    ),
]


@pytest.mark.parametrize(("name", "method", "mimic", "scalars", "settings"), PAIRS, ids=[row[0] for row in PAIRS])
@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("defaults", [True, False])
def test_unfused_passes_take_the_trajectory_of_the_library(
    name: str, method: Any, mimic: Any, scalars: Any, settings: Any, decay: float, defaults: bool
) -> None:
    mine, theirs = start(), start()
    both = {"weight_decay": decay} | ({} if defaults else settings)
    plain, ours = getattr(unfused, name)(mine, **both), method(theirs, **mimic, **both)
    for t in range(20):
        run(plain, mine, t)
        run(ours, theirs, t)
        for a, b in [*zip(mine, theirs, strict=True), *scalars(plain, ours)]:
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-11, atol=1e-13)
        if name == "PlainKOALAPlusPlus":
            assert all(S >= plain.R for S in plain.S.values())  # the library's safeguard has not acted
    moved = math.dist(*(torch.cat([p.detach().flatten() for p in ps]).tolist() for ps in (mine, start())))
    assert 0.05 < moved < 100


def test_without_the_safeguard_the_trajectories_part_where_an_innovation_variance_is_below_the_noise() -> None:
    mine, theirs = start(), start()
    settings = {"sigma": 0.2, "q": 0.1}
    plain, ours = unfused.PlainKOALAPlusPlus(mine, **settings), KOALAPlusPlus(theirs, **settings)
    unlike = False
    for t in range(20):
        run(plain, mine, t)
        run(ours, theirs, t)
        unlike = unlike or any(S < plain.R for S in plain.S.values())
        apart = max((a - b).detach().abs().max().item() for a, b in zip(mine, theirs, strict=True))
        assert apart > 1e-3 if unlike else apart < 1e-13
    assert unlike


def test_the_bisection_comes_to_the_multiplier_of_the_worked_example_in_15_trials() -> None:
    x = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = unfused.PlainArTuRO([x], lr=0.01, reg_weight=0.3, prior_prec=0.0015, nu=1.3)
    known = {"b": [0.2, 0.3], "a": [0.1, 0.4], "precision": [2.0, 1.0]}
    optimizer.state[x] |= {name: torch.tensor(values, dtype=torch.float64) for name, values in known.items()}
    with torch.no_grad():
        assert optimizer._multiplier([x]) == 1.373291015625
    assert optimizer.trials == 15


COUNTS: list[tuple[str, dict[str, Any], Callable[[int], int], Callable[[int], int], list[str]]] = [
    ("PlainCoolMomentum", {}, lambda n: 13, lambda n: 2, ["13 words an element, 2 temporaries a tensor", "no sync"]),
    (
        "PlainCoolMomentum",
        {"temperature": False},
        lambda n: 8,
        lambda n: 0,
        ["8 words an element, 0 temporaries a tensor"],
    ),
    (
        "PlainCoolMomentum",
        {"temperature": False, "weight_decay": 0.1},
        lambda n: 8 + 3,
        lambda n: 1,
        ["Weight decay adds 3 and 1."],
    ),
    (
        "PlainVanillaKOALA",
        {},
        lambda n: 13,
        lambda n: 3,
        ["13 words an element, 3 temporaries a tensor, 1 synchronisation a tensor"],
    ),
    (
        "PlainMomentumKOALA",
        {},
        lambda n: 25 + 18,
        lambda n: 11,
        ["43 words an element, 11 temporaries a tensor, 1 synchronisation a tensor and 2 more, and 2 copies"],
    ),
    (
        "PlainKOALAPlusPlus",
        {},
        lambda n: 39,
        lambda n: 10,
        ["39 words an element, 10 temporaries a tensor", "1 synchronisation a tensor"],
    ),
    (
        "PlainArTuRO",
        {},
        lambda n: 69 + 32 * n + 23,
        lambda n: 17 + 10 * n + 7,
        ["69 + 32 n + 23 words an element", "17 + 10 n + 7 temporaries a tensor"],
    ),
]
SYNCS = {"PlainVanillaKOALA": TENSORS, "PlainMomentumKOALA": TENSORS + 2, "PlainKOALAPlusPlus": TENSORS}


def prepared(name: str, settings: dict[str, Any]) -> tuple[Any, Tensor]:
    """An optimizer of three tensors with gradients, and their loss."""
    params = [torch.randn(SIZE, requires_grad=True) for _ in range(TENSORS)]
    for p in params:
        p.grad = torch.randn(SIZE) / 30
    return getattr(unfused, name)(params, **settings), torch.tensor(0.7)


@pytest.mark.parametrize(("name", "settings", "words", "temporaries", "said"), COUNTS)
def test_a_step_makes_the_passes_that_its_docstring_states(
    name: str, settings: Any, words: Any, temporaries: Any, said: Any
) -> None:
    optimizer, loss = prepared(name, settings)
    for step in range(4):
        with Passes() as passes:
            optimizer.step(loss=loss)
        if step:  # the first makes state
            n = getattr(optimizer, "trials", 0)
            counted = passes.words / TENSORS, passes.temporaries / TENSORS
            assert counted == (words(n), temporaries(n))
            if name != "PlainArTuRO":
                assert passes.syncs == SYNCS.get(name, 0)
                assert passes.copies == (2 if name == "PlainMomentumKOALA" else 0)
    doc = " ".join(type(optimizer).__doc__.split())
    assert [words for words in said if words not in doc] == []


def test_a_bisection_makes_the_host_wait_three_times_a_trial_and_at_most_twice_more() -> None:
    optimizer, loss = prepared("PlainArTuRO", {})
    trials = []
    for _ in range(12):
        with Passes() as passes:
            optimizer.step(loss=loss)
        trials.append(optimizer.trials)
        assert passes.syncs - 3 * optimizer.trials in (1, 2)
    assert 5 < trials[0] <= 15
    assert sorted(trials[1:])[5] <= 4
    assert max(trials[1:]) <= 6


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("PlainCoolMomentum", 1),
        ("PlainVanillaKOALA", 0),
        ("PlainMomentumKOALA", 2),
        ("PlainKOALAPlusPlus", 2),
        ("PlainArTuRO", 8),
    ],
)
def test_state_is_as_many_tensors_a_parameter_as_stated_and_gradients_stay(name: str, state: int) -> None:
    optimizer, loss = prepared(name, {"weight_decay": 0.1})
    gradients = [p.grad.clone() for p in optimizer.all]
    storages = [p.data_ptr() for p in optimizer.all]
    for _ in range(3):
        optimizer.step(loss=loss)
    held = [t for s in optimizer.state.values() for t in s.values()]
    assert len(held) == state * TENSORS
    assert all(large(t) for t in held)
    assert all(torch.equal(p.grad, g) for p, g in zip(optimizer.all, gradients, strict=True))
    assert [p.data_ptr() for p in optimizer.all] == storages


@pytest.mark.parametrize("method", unfused.METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_method_of_the_benchmark_moves_the_words_and_has_the_state_that_it_says(method: Any, dtype: Any) -> None:
    params = [(torch.randn(SIZE) * 0.02).to(dtype).requires_grad_() for _ in range(TENSORS)]
    for p in params:
        p.grad = (torch.randn(SIZE) * 1e-3).to(dtype)
    optimizer = method.make(params)
    loss = {"loss": torch.tensor(1.0)} if method.loss else {}
    moved, trials = 0.0, 0
    for _ in range(40):
        with Passes() as passes:
            optimizer.step(**loss)
        moved, trials = passes.words / TENSORS, getattr(optimizer, "trials", 4)
    assert moved == method.words.total + 32 * (trials - 4)
    held = [t for s in optimizer.state.values() for t in s.values()]
    assert len(held) == method.state * TENSORS
    assert {t.dtype for t in held} <= {dtype}
    assert all(p.isfinite().all() for p in params)


def test_the_methods_are_known_beside_those_of_the_library() -> None:
    known = all_methods([FILE])
    assert {one.name for one in unfused.METHODS} == {name for name, one in known.items() if one.mode == "plain"}
    for one in unfused.METHODS:
        assert known[one.against].mode == "fused"
        assert known[one.against].words.total < one.words.total
    assert {"koala-v-fused", "koala-v-plain"} <= {one.name for one in chosen(known, ["koala-v-plain"], "resnet18")}


@pytest.mark.parametrize(("settings", "low", "high"), [({}, 3, 5), ({"lr": unfused.RATE}, 14, 14)])
def test_a_bisection_takes_about_four_trials_a_step_and_14_in_a_tiny_region(
    settings: dict[str, float], low: float, high: float
) -> None:
    p = (torch.randn(200_000) * 0.02).requires_grad_()
    p.grad = torch.randn(200_000) * 1e-3
    method = next(one for one in unfused.METHODS if one.name == "arturo-plain")
    optimizer = method.make([p], **settings)
    trials = []
    for _ in range(40):
        optimizer.step()
        trials.append(optimizer.trials)
    assert low <= sum(trials[20:]) / 20 <= high
