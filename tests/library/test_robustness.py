"""Whatever it is given: properties of a step over shapes, precisions and settings, and a table of extremes.

Hypothesis draws the examples, the same in every run; ``FALLLINE_SEED=1 pytest tests/test_robustness.py`` draws others.
A number that a step moves to infinity is no fault if the paper's equations, in plain Python floats, take it there too.
"""

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bits import assert_bits
from hypothesis import HealthCheck, configuration, given, seed, settings
from hypothesis import strategies as st
from methods import CLASSES
from torch import Tensor, nn

from fallline._settings import choices, inside, intervals
from reference import arturo as arturo_reference
from reference import coolmomentum as cool_reference
from reference import koala as koala_reference
from reference import lodo as lodo_reference
from reference.koala_metric import WHOLE as METRIC_SETTINGS
from reference.koala_metric import MetricKoala
from reference.koala_pp import PlusPlus

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly moves")  # learning rates are drawn
SEED = os.environ.get("FALLLINE_SEED")
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # it would leave a folder in the tree

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
every_class = pytest.mark.parametrize("name", CLASSES)

Settings = dict[str, Any]
Test = Callable[..., None]


def examples(number: int) -> Callable[[Test], Test]:
    """So many examples: the same in every run, or with ``FALLLINE_SEED`` others."""
    run = settings(
        max_examples=number,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
    )
    return run if SEED is None else lambda test: seed(int(SEED))(run(test))


# -- what is drawn: parameters ----------------------------------------------------------------------------------


class Tensors(NamedTuple):
    """Parameters to be made: shapes and layouts by group, and the seed of their values."""

    groups: list[list[tuple[tuple[int, ...], str]]]
    seed: int

    def made(self, dtype: torch.dtype, kind: int = 0) -> list[list[Tensor]]:
        """Values for them, group by group; every ``kind`` (0 the parameters, 1 the first gradients, ...) its own."""
        g = torch.Generator().manual_seed(1000 * self.seed + kind)
        return [[laid_out(shape, layout, dtype, g) for shape, layout in group] for group in self.groups]


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Standard normal values; of other layouts than contiguous as far as the shape has them."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    value = torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    if layout == "transposed":
        return value.mT.contiguous().mT if value.dim() > 1 else value
    if layout == "with gaps":
        return torch.stack([value, value], -1)[..., 0]
    return value


shapes = st.one_of(
    st.lists(st.integers(1, 3), max_size=4).map(tuple),
    st.sampled_from([(), (0,), (2, 0), (5,), (1, 1)]),
)
tensors = st.tuples(shapes, st.sampled_from(["contiguous", "transposed", "with gaps"]))
problems = st.builds(
    Tensors, st.lists(st.lists(tensors, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 999)
)


# -- what is drawn: settings ------------------------------------------------------------------------------------

USUAL = {  # a range in which nothing diverges within three steps, for settings that the whole range would make do so
    "lr": (0.001, 0.5),
    "rho_0": (0.0, 0.99),
    "cool_steps": (1.0, 20.0),
    "hold_steps": (0.0, 3.0),
    "beta": (0.0, 0.95),
    "beta2": (0.0, 0.99),
    "a": (0.0, 1.0),
    "alpha_r": (0.0, 1.0),
    "sc": (-0.01, 0.01),
    "depth": (0, 3),
    "block_size": (1, 5),
    "bucket_size": (1, 9),
    "newton_iters": (0, 3),
    "meta_lr": (0.0, 0.05),
    "meta_eps": (1e-8, 1e-3),
    "curvature_init": (0.0, 1.0),
    "curvature_floor": (0.0, 0.1),
    "eta_min": (0.0, 0.5),
    "reg_weight": (0.01, 2.0),
    "prior_prec": (0.0, 0.1),
    "var_init": (0.001, 1.0),
    "r": (0.01, 2.0),
}
WHOLE_NUMBERS = {"depth", "block_size", "bucket_size", "newton_iters"}
LARGEST = {"depth": 4, "block_size": 9, "newton_iters": 4}  # what costs time


def numbers(interval: str, largest: float) -> st.SearchStrategy[float]:
    """Numbers of a range such as "[0, inf)": its ends, and all magnitudes between ``1 / largest`` and ``largest``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    even = st.floats(max(low, -largest), min(high, largest), allow_nan=False).filter(lambda x: abs(x) >= 1 / largest)
    magnitudes = st.floats(-math.log10(largest), math.log10(largest)).map(lambda e: 10.0**e)
    ends = st.sampled_from([low, 1 / largest, math.nextafter(high, low) if high == 1 else largest])
    return st.one_of(even, magnitudes, ends).filter(lambda x: inside(x, interval))


def usual_numbers(name: str) -> st.SearchStrategy[Any]:
    low, high = USUAL.get(name, (0.01, 1.0))
    return st.integers(int(low), int(high)) if name in WHOLE_NUMBERS else st.floats(low, high)


@st.composite
def legal(draw: st.DrawFn, name: str, largest: float | None = None) -> Settings:
    """Settings that a class takes: of a usual size, or any up to ``largest`` in its ranges."""
    cls: Any = CLASSES[name]
    defaults = cls([nn.Parameter(torch.zeros(1))]).defaults
    chosen: Settings = {}
    for key, interval in intervals(cls).items():
        if key in WHOLE_NUMBERS and largest is not None:
            drawn: st.SearchStrategy[Any] = st.integers(int(interval[1]), LARGEST.get(key, 50)) | st.just(
                int(interval[1])
            )
        else:
            drawn = usual_numbers(key) if largest is None else numbers(interval, largest)
        chosen[key] = draw(st.none() | drawn if defaults[key] is None else drawn)
    for key, options in choices(cls).items():
        chosen[key] = draw(st.sampled_from([option for option in options if option is not callable]))
    for key, value in defaults.items():
        if isinstance(value, bool) and key in ("decoupled", "symmetric"):
            chosen[key] = draw(st.booleans())
    return made_legal(name, chosen)


def made_legal(name: str, chosen: Settings) -> Settings:
    """What the ranges do not say."""
    if name == "koala-m":
        bound = math.sqrt(chosen["sw"]) * math.sqrt(chosen["sv"]) * (1 - 1e-12)
        chosen["sc"] = min(max(chosen["sc"], -bound), bound)
        if chosen["sc"] ** 2 > chosen["sw"] * chosen["sv"]:
            chosen["sc"] = 0.0
    if name == "arturo":
        if chosen["solver"] == "bisect":
            chosen["scope"] = "global"  # it takes any floor too, but nothing bounds a step along negative curvature
        chosen["curvature_floor"] = max(chosen["curvature_floor"], -chosen["reg_weight"] * chosen["prior_prec"])
        if chosen["reg_weight"] + chosen["nu"] == 0:
            chosen["nu"] = 1.0
    if name == "cool":
        chosen["skip_nonfinite"] = True
    return chosen


# -- a step, and the same by the paper's equations ----------------------------------------------------------------


def make(name: str, groups: list[list[Tensor]], chosen: Settings, more: list[Settings] | None = None) -> Any:
    """An optimizer over groups of parameters, which may have settings of their own."""
    cls: Any = CLASSES[name]
    more = more or [{}] * len(groups)
    return cls([{"params": ps, **own} for ps, own in zip(groups, more, strict=True)], **chosen)


def parameters(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[nn.Parameter(value) for value in group] for group in groups]


def flat(groups: list[list[Tensor]]) -> list[Tensor]:
    return [value for group in groups for value in group]


def step(optimizer: Any, groups: list[list[Tensor]], gradients: list[list[Tensor]], loss: Any) -> None:
    for p, g in zip(flat(groups), flat(gradients), strict=True):
        p.grad = g.clone()
    optimizer.step(loss=loss)


def real(t: Tensor) -> list[float]:
    """All real numbers of a tensor, as Python floats."""
    t = t.detach()
    return (torch.view_as_real(t) if t.is_complex() else t).double().flatten().tolist()


class Plain:
    """The reference of any method, of the parameters that have an element."""

    def __init__(self, name: str, optimizer: Any, groups: list[list[Tensor]], chosen: Settings) -> None:
        self.name = name
        owned = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.numel()]
        blocks = [real(p) for p, _ in owned]
        own = {key: [group[key] for _, group in owned] for key in ("lr", "weight_decay")}
        if name == "cool":
            given_by_group = ("lr", "rho_0", "cool_steps", "schedule", "hold_steps", "weight_decay", "decoupled")
            self.each = [
                cool_reference.CoolMomentum(block, **{key: group[key] for key in given_by_group})
                for block, (_, group) in zip(blocks, owned, strict=True)
            ]
        elif name == "arturo":
            known = {field.name for field in fields(arturo_reference.Settings)}
            split = [
                ([real(p) for p in group["params"] if p.numel()], {key: group[key] for key in known})
                for group in optimizer.param_groups
            ]
            one = {key: chosen[key] for key in ("solver", "eta_min", "scope") if key in chosen}
            made = [(values, arturo_reference.Settings(**kept)) for values, kept in split]
            self.arturo = arturo_reference.Arturo(made, **one)
        elif name == "lodo":
            self.index = {p: i for i, (p, _) in enumerate(owned)}
            self.values = blocks
            self.optimizer = optimizer
            self.networks = [lodo_network(net) for net in optimizer.networks]
        elif name == "koala-orthogonal":
            alike = optimizer.defaults["metric"]
            rest = {key: optimizer.defaults[key] for key in METRIC_SETTINGS}
            rest["target"] = 0.0 if rest["target"] == "auto" else rest["target"]  # no loss is below 0 here
            shapes = [(*p.shape, 2) if p.is_complex() else tuple(p.shape) for p, _ in owned]
            arrays = [np.array(block).reshape(shape) for block, shape in zip(blocks, shapes, strict=True)]
            decay = own["weight_decay"]
            self.metric = MetricKoala(arrays, own["lr"], [alike] * len(arrays), weight_decay=decay, **rest)
        else:
            rest = {key: value for key, value in chosen.items() if key not in own}
            cls: Any = {"koala-v": koala_reference.Vanilla, "koala-m": koala_reference.Momentum, "koala-pp": PlusPlus}
            self.koala = cls[name](blocks, **own, **rest)
            self.koala.predict()  # the library predicts the covariance for the first step when it is made

    def step(self, gradients: list[list[float]], loss: float) -> None:
        """One step, with the gradients of the parameters that have an element."""
        if self.name == "cool":
            for one, g in zip(self.each, gradients, strict=True):
                one.step(g)
        elif self.name == "arturo":
            self.arturo.step(gradients)
        elif self.name == "lodo":
            gs = [
                torch.tensor([x for p in net.parameters for x in gradients[self.index[p]]], dtype=torch.float64)
                for net in self.optimizer.networks
            ]
            if gs:
                lodo_reference.iterate(self.networks, lambda *xs: torch.cat(xs) @ torch.cat(gs))
        elif self.name == "koala-orthogonal":
            shapes = [x.shape for x in self.metric.tensors]
            arrays = [np.array(g).reshape(shape) for g, shape in zip(gradients, shapes, strict=True)]
            self.metric.step(np.array(loss), arrays)
        else:
            self.koala.step(loss, gradients)

    @property
    def blocks(self) -> list[list[float]]:
        if self.name == "cool":
            return [one.x for one in self.each]
        if self.name == "arturo":
            return self.arturo.blocks
        if self.name == "lodo":
            found = list(self.values)
            for net, plain in zip(self.optimizer.networks, self.networks, strict=True):
                values = plain.x.detach().tolist()
                for p, n in zip(net.parameters, net.sizes, strict=True):
                    found[self.index[p]], values = values[:n], values[n:]
            return found
        if self.name == "koala-orthogonal":
            return [x.flatten().tolist() for x in self.metric.tensors]
        blocks: list[list[float]] = self.koala.blocks
        return blocks


def lodo_network(net: Any) -> lodo_reference.Network:
    kind, group = net.group["preconditioner"], net.group
    theta = {
        "network": lambda: [net.blocks],
        "residual": lambda: [net.weights, net.middle],
        "diagonal": lambda: [net.weights],
        "global": lambda: [net.weights],
    }[kind]()
    permutations = net.permutations if kind in ("network", "residual") else None
    known = {field.name: group[field.name] for field in fields(lodo_reference.Settings)}
    if kind != "network":
        known["second_moment"] = "entry"  # blocks are 1 x 1
    x = torch.tensor([v for p in net.parameters for v in real(p)], dtype=torch.float64)
    return lodo_reference.Network(x, kind, [t.clone() for t in theta], permutations, lodo_reference.Settings(**known))


def reference_path(name: str, optimizer: Any, groups: Any, chosen: Settings, steps: list[Any]) -> Any:
    """Where the paper's equations lead, a list of blocks after each step; None if they leave what floats can hold."""
    path = []
    try:
        plain = Plain(name, optimizer, groups, chosen)
        for gradients, loss in steps:
            plain.step([real(g) for g in flat(gradients) if g.numel()], loss)
            path.append([list(block) for block in plain.blocks])
    except (OverflowError, ZeroDivisionError, ValueError):
        return None
    return path if all(math.isfinite(x) for blocks in path for block in blocks for x in block) else None


def largest_of(blocks: list[list[float]]) -> float:
    return max((abs(x) for block in blocks for x in block), default=0.0)


def run(name: str, problem: Tensors, dtype: torch.dtype, chosen: Settings, steps: int, more: Any = None) -> Any:
    """A run on random gradients: the parameters, the optimizer and what it was given."""
    groups = parameters(problem.made(dtype))
    optimizer = make(name, groups, chosen, more)
    given_steps = [(problem.made(dtype, 1 + t), 1.0 + t) for t in range(steps)]
    for gradients, loss in given_steps:
        step(optimizer, groups, gradients, loss)
    return groups, optimizer, given_steps


def values(groups: list[list[Tensor]]) -> list[Tensor]:
    return [p.detach() for p in flat(groups)]


def assert_near(name: str, mine: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Within ``tolerance`` of the largest number of all: what is summed over tensors rounds with that."""
    size = max([1.0, *(float(t.abs().max()) for t in wanted if t.numel())])
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * size)


own_settings = st.lists(
    st.fixed_dictionaries({"lr": st.floats(0.001, 0.3), "weight_decay": st.sampled_from([0.0, 0.1])}),
    min_size=3,
    max_size=3,
)


@every_class
@examples(30)
@given(data=st.data(), problem=problems, more=own_settings)
def test_a_step_on_any_shapes_and_groups_is_the_references(
    name: str, data: st.DataObject, problem: Tensors, more: list[Settings]
) -> None:
    chosen = data.draw(legal(name))
    if name == "arturo":
        chosen |= {"solver": "newton", "newton_iters": 8}
    groups = parameters(problem.made(torch.float64))
    more = more[: len(groups)]
    optimizer = make(name, groups, chosen, more)
    steps = [(problem.made(torch.float64, 1 + t), 1.0 + t) for t in range(3)]
    found = reference_path(name, optimizer, groups, chosen, steps)
    if found is None:  # nothing has an element
        assert not any(p.numel() for p in flat(groups))
    for gradients, loss in steps:
        step(optimizer, groups, gradients, loss)
    mine = [real(p) for p in flat(groups) if p.numel()]
    end = found[-1] if found else []
    size = 1 + largest_of(end)
    for block, wanted in zip(mine, end, strict=True):
        assert block == pytest.approx(wanted, rel=1e-7, abs=1e-7 * size)
    assert optimizer.skipped == 0


@every_class
@examples(30)
@given(data=st.data(), problem=problems, dtype=st.sampled_from(DTYPES))
def test_with_any_legal_settings_a_step_is_finite_or_the_reference_is_not(
    name: str, data: st.DataObject, problem: Tensors, dtype: torch.dtype
) -> None:
    chosen = data.draw(legal(name, 1e30 if dtype == torch.float64 else 1e6))
    scale, loss = (
        data.draw(st.sampled_from([1e-12, 1e-3, 1.0, 1e3])),
        data.draw(st.sampled_from([0.0, 1e-6, 1.0, -3.0, 1e4])),
    )
    groups = parameters(problem.made(dtype))
    optimizer = make(name, groups, chosen)
    steps = [([[scale * g for g in gs] for gs in problem.made(dtype, 1 + t)], loss) for t in range(2)]
    found = reference_path(name, optimizer, groups, chosen, steps)
    for gradients, loss in steps:
        step(optimizer, groups, gradients, loss)
    if found is not None and max(map(largest_of, found)) < torch.finfo(dtype).max / 2:
        assert all(p.isfinite().all() for p in values(groups)), (found, values(groups))


# -- however it is run --------------------------------------------------------------------------------------------

# Few of the settings that choose between programs: each is compiled for each set of dtypes.
FUSED: dict[str, Settings] = {
    "cool": {"lr": 0.05, "rho_0": 0.9, "cool_steps": 4, "skip_nonfinite": True},
    "koala-v": {"lr": 0.5, "sigma": 0.1},
    "koala-m": {"lr": 0.5},
    "koala-pp": {"lr": 0.5, "sigma": 0.1, "q": 0.1},
    "koala-orthogonal": {"lr": 0.5, "q": 1e-2, "weight_decay": 0.0},
    "arturo": {"lr": 0.05},
    "lodo": {"lr": 0.1, "meta_lr": 0.01, "preconditioner": "global"},  # the one whose graph fits all shapes
}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@every_class
@examples(20)
@given(problem=problems, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]))
def test_eager_and_fused_agree_on_any_shapes_layouts_and_precisions(
    name: str, problem: Tensors, dtype: torch.dtype
) -> None:
    ends = [run(name, problem, dtype, FUSED[name] | {"fused": fused}, 3)[0] for fused in (False, True)]
    eager, fused = map(values, ends)
    assert all(p.isfinite().all() for p in fused)
    assert_near(name, fused, eager, ROUNDING[dtype])


@every_class
@examples(20)
@given(data=st.data(), problem=problems, dtype=st.sampled_from(DTYPES))
def test_layout_in_memory_changes_nothing(name: str, data: st.DataObject, problem: Tensors, dtype: torch.dtype) -> None:
    chosen = data.draw(legal(name))
    plain = problem._replace(groups=[[(shape, "contiguous") for shape, _ in group] for group in problem.groups])
    a, b = (values(run(name, each, dtype, chosen, 3)[0]) for each in (problem, plain))
    assert all(p.isfinite().all() for p in a)
    assert_near(name, a, b, ROUNDING[dtype])


@every_class
@examples(20)
@given(data=st.data(), problem=problems)
def test_the_order_of_parameters_and_groups_changes_nothing(name: str, data: st.DataObject, problem: Tensors) -> None:
    chosen = data.draw(legal(name))
    if name == "lodo":  # a network is drawn for a place in the order, unless there is nothing to draw
        chosen["preconditioner"] = data.draw(st.sampled_from(["diagonal", "global"]))
        chosen["bucket_size"] = None
    order = data.draw(st.permutations(range(len(problem.groups))))
    within = [data.draw(st.permutations(range(len(group)))) for group in problem.groups]

    def permuted(groups: list[list[Tensor]]) -> list[list[Tensor]]:
        return [[groups[i][j] for j in within[i]] for i in order]

    one, _, given_steps = run(name, problem, torch.float64, chosen, 3)
    two = parameters(problem.made(torch.float64))
    optimizer = make(name, permuted(two), chosen)
    for gradients, loss in given_steps:
        step(optimizer, permuted(two), permuted(gradients), loss)
    assert_near(name, values(two), values(one), 1e-10)


# -- laws -------------------------------------------------------------------------------------------------------------

# In other units nothing moves elsewhere: powers of the unit with which settings go, where weights are measured in one
# k times as small (x times k, the gradient over k), or the loss is (loss and gradient times k).
WEIGHTS: dict[str, dict[str, int]] = {
    "cool": {"lr": 2, "weight_decay": -2},
    "koala-v": {"sigma": 2, "q": 2, "weight_decay": -2},
    "koala-m": {"sw": 2, "sc": 2, "sv": 2, "qw": 2, "qv": 2, "weight_decay": -2},
    "koala-pp": {"sigma": 2, "q": 2, "weight_decay": -2},
    "koala-orthogonal": {"q": 2, "eps": -1, "weight_decay": -1},
    "arturo": {
        "var_init": 2,
        "prior_prec": -2,
        "curvature_init": -2,
        "curvature_floor": -2,
        "process_noise": -2,
        "process_noise_quad": -4,
        "measurement_noise": -2,
    },
    "lodo": {"lr": 2, "weight_decay": -2},
}
LOSS: dict[str, dict[str, int]] = {
    "cool": {"lr": -1, "weight_decay": 1},
    "koala-v": {"r": 2, "target": 1, "weight_decay": 1},
    "koala-m": {"r": 2, "target": 1, "weight_decay": 1},
    "koala-pp": {"r": 2, "target": 1, "weight_decay": 1},
    "koala-orthogonal": {"r": 2, "target": 1, "eps": 1},
    "arturo": {
        "reg_weight": 1,
        "nu": 1,
        "curvature_init": 1,
        "curvature_floor": 1,
        "filter_var_init": 2,
        "process_noise": 2,
        "process_noise_quad": 2,
        "measurement_noise": 2,
    },
    "lodo": {"lr": -1, "weight_decay": 1, "meta_eps": 1},
}
# Of the settings not named above; what has no unit of its own would stand in the way.
UNITS: dict[str, Settings] = {
    "koala-m": {"q_rule": "paper"},  # "reference" adds a length to squares of lengths
    "arturo": {"filter_var_init": 0.0},  # one number for two variances in different units
}


def scaled(chosen: Settings, powers: dict[str, int], k: float) -> Settings:
    return {
        key: value * k ** powers.get(key, 0) if key in powers and value is not None else value
        for key, value in chosen.items()
    }


def trajectory(
    name: str, problem: Tensors, chosen: Settings, dtype: torch.dtype, x: float = 1.0, g: float = 1.0, loss: float = 1.0
) -> list[Tensor]:
    """Where three steps lead, with weights, gradients and losses multiplied; divided by the factor of the weights."""
    groups = parameters([[x * value for value in group] for group in problem.made(dtype)])
    optimizer = make(name, groups, chosen)
    if "measurement_noise" in optimizer.param_groups[0] and chosen.get("r") is None and name.startswith("koala"):
        optimizer.measurement_noise.fill_(loss**2)  # R starts at 1, in whatever unit
    for t in range(3):
        gradients = [[g * value for value in group] for group in problem.made(dtype, 1 + t)]
        step(optimizer, groups, gradients, loss * (1.0 + t))
    return [p / x for p in values(groups)]


def drawn(data: st.DataObject, name: str) -> Settings:
    chosen = data.draw(legal(name)) | UNITS.get(name, {})
    if name.startswith("koala"):
        chosen["target"] = data.draw(st.sampled_from([0.0, 0.25]))
    if name == "arturo":
        chosen |= {"solver": "newton", "eta_min": 0.0}
        chosen["process_noise_quad"] = data.draw(st.floats(0.01, 1))
    if name == "lodo":
        chosen["meta_optimizer"] = "adam"
    return chosen


powers_of_four = st.sampled_from([4.0**-6, 0.25, 4.0, 256.0, 4.0**6])  # whose roots are exact, and multiply exactly


@every_class
@examples(20)
@given(data=st.data(), problem=problems, k=powers_of_four)
def test_in_other_units_of_the_weights_the_path_is_the_same(
    name: str, data: st.DataObject, problem: Tensors, k: float
) -> None:
    chosen = drawn(data, name)
    if name == "arturo":
        chosen["curvature"] = "rls"  # the root of a second moment has not a Hessian's unit
    one = trajectory(name, problem, chosen, torch.float64)
    two = trajectory(name, problem, scaled(chosen, WEIGHTS[name], k), torch.float64, x=k, g=1 / k)
    assert_near(name, two, one, 1e-12)


@every_class
@examples(20)
@given(data=st.data(), problem=problems, k=powers_of_four)
def test_in_other_units_of_the_loss_the_path_is_the_same(
    name: str, data: st.DataObject, problem: Tensors, k: float
) -> None:
    chosen = drawn(data, name)
    one = trajectory(name, problem, chosen, torch.float64)
    two = trajectory(name, problem, scaled(chosen, LOSS[name], k), torch.float64, g=k, loss=k)
    assert_near(name, two, one, 1e-12)


@every_class
@examples(20)
@given(data=st.data(), problem=problems, dtype=st.sampled_from(DTYPES))
def test_in_a_mirror_the_path_is_mirrored_to_the_bit(
    name: str, data: st.DataObject, problem: Tensors, dtype: torch.dtype
) -> None:
    chosen = data.draw(legal(name))
    one = trajectory(name, problem, chosen, dtype)
    two = trajectory(name, problem, chosen, dtype, x=-1.0, g=-1.0)
    assert_bits(one, two)


@examples(20)
@given(data=st.data(), problem=problems, k=powers_of_four)
def test_of_arturos_noises_only_the_ratios_matter(data: st.DataObject, problem: Tensors, k: float) -> None:
    chosen = drawn(data, "arturo") | {"filter_var_init": 0.5}
    noises = dict.fromkeys(("filter_var_init", "process_noise", "process_noise_quad", "measurement_noise"), 1)
    one = trajectory("arturo", problem, chosen, torch.float64)
    two = trajectory("arturo", problem, scaled(chosen, noises, k), torch.float64)
    assert_bits(one, two)


@examples(30)
@given(data=st.data(), problem=problems, dtype=st.sampled_from(DTYPES))
def test_arturo_keeps_to_its_bound_whatever_it_is_given(
    data: st.DataObject, problem: Tensors, dtype: torch.dtype
) -> None:
    chosen = data.draw(legal("arturo", 1e4)) | {"solver": "newton", "weight_decay": 0.0}
    groups, optimizer, _ = run("arturo", problem, dtype, chosen, 3)
    if any(p.numel() for p in flat(groups)):
        assert bool((optimizer.kl <= chosen["lr"] * (1 + 1e-6)).all())


# -- extremes ---------------------------------------------------------------------------------------------------------

LOSSES = (1.0, 1e30, 0.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 1e200)
GRADIENTS = (1.0, 1e-30, 1e15, 1e30, 1e38, 1e-45, 0.0)  # 1e-45 is subnormal in float32 and in bfloat16: 0 there
CASES = [
    *((loss, 1.0) for loss in LOSSES),
    *((1.0, size) for size in GRADIENTS),
    (1e30, 1e-30),
    (0.0, 0.0),
    (1e200, 1e38),
]
OVERFLOW = torch.finfo(torch.float32).max ** 0.5  # of a gradient's norm, beyond which its square is infinite

EXTREME: dict[str, Settings] = FUSED | {
    "arturo": {"lr": 0.05, "newton_iters": 8},  # the exact multiplier, which the reference has
    "lodo": {"lr": 0.1, "meta_lr": 0.01, "depth": 2},
}
EXTREME |= {name: {**EXTREME.get(name, {}), "target": 0.0} for name in CLASSES if name.startswith("koala")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_class
def test_an_extreme_loss_or_gradient_is_skipped_or_the_references_step(name: str, dtype: torch.dtype) -> None:
    """Between two ordinary steps. What is skipped is counted and changes nothing, so the reference leaves it out."""
    for loss, size in CASES:
        g = torch.Generator().manual_seed(3)
        start = [torch.randn(shape, generator=g).to(dtype) for shape in [(3, 2), (4,), ()]]
        groups = parameters([start[:2], start[2:]])
        optimizer = make(name, groups, EXTREME[name])
        plain = Plain(name, optimizer, groups, EXTREME[name])
        skips = 0
        for factor, value in ((1.0, 1.0), (size, loss), (1.0, 1.0)):
            gradients = [[(factor * torch.randn(p.shape, generator=g)).to(dtype) for p in group] for group in groups]
            norm = max(float(t.double().norm()) for t in flat(gradients))
            bad = norm > OVERFLOW or (name.startswith("koala") and not math.isfinite(value * value))
            before = everything(groups, optimizer)
            step(optimizer, groups, gradients, value)
            skips += bad
            assert optimizer.skipped.item() == skips, (loss, size)
            if bad:
                assert_bits(everything(groups, optimizer), before)
            else:
                plain.step([real(t) for t in flat(gradients)], value)
        found, mine = plain.blocks, [real(p) for p in flat(groups)]
        assert all(math.isfinite(x) for block in mine for x in block), (loss, size)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        scale = 1 + largest_of(found)
        for block, wanted in zip(mine, found, strict=True):
            assert block == pytest.approx(wanted, rel=tolerance, abs=tolerance * scale), (loss, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_class
def test_fused_an_extreme_is_skipped_or_finite_too(name: str, dtype: torch.dtype) -> None:
    """Sums are float64 there, so that a square which overflows float32 need not be the reason to skip a step."""
    for loss, size in (*CASES, (1.0, math.inf), (1.0, math.nan)):
        g = torch.Generator().manual_seed(3)
        groups = parameters([[torch.randn(shape, generator=g).to(dtype) for shape in [(3, 2), (4,), ()]]])
        optimizer = make(name, groups, FUSED[name] | {"fused": True})
        for factor, value in ((1.0, 1.0), (size, loss), (1.0, 1.0)):
            gradients = [[(factor * torch.randn(p.shape, generator=g)).to(dtype) for p in group] for group in groups]
            before, skipped = everything(groups, optimizer), optimizer.skipped.item()
            step(optimizer, groups, gradients, value)
            if optimizer.skipped.item() > skipped:
                assert_bits(everything(groups, optimizer), before)
            else:
                assert math.isfinite(factor)
                assert math.isfinite(value) or not name.startswith("koala")
            assert all(p.isfinite().all() for p in values(groups)), (loss, size)


def everything(groups: list[list[Tensor]], optimizer: Any) -> list[Any]:
    """Copies of parameters, state and shared scalars, but the number of skipped steps."""
    first = optimizer.param_groups[0]
    scalars = {key: t.clone() for key, t in first.items() if isinstance(t, Tensor) and key != "skipped"}
    state = [{key: t.clone() for key, t in optimizer.state[p].items()} for p in flat(groups)]
    return [[p.clone() for p in values(groups)], state, scalars]


# -- long runs --------------------------------------------------------------------------------------------------------

LONG = (10**7, 2**24, 2**31, 2**53)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("count", LONG)
@every_class
def test_after_so_many_skipped_steps_the_count_goes_on(name: str, count: int, fused: bool) -> None:
    groups = parameters([[torch.ones(3), torch.ones(2, 2)]])
    optimizer = make(name, groups, FUSED[name] | {"fused": fused})
    optimizer.skipped.fill_(count)
    before = everything(groups, optimizer)
    for i in range(3):
        step(optimizer, groups, [[torch.full((3,), math.nan), torch.ones(2, 2)]], 1.0)
        assert optimizer.skipped.item() == count + 1 + i
    assert_bits(everything(groups, optimizer), before)
    step(optimizer, groups, [[torch.ones(3), torch.ones(2, 2)]], 1.0)
    assert optimizer.skipped.item() == count + 3
    assert all(p.isfinite().all() and not torch.equal(p, torch.ones_like(p)) for p in values(groups))


@pytest.mark.parametrize("schedule", cool_reference.SCHEDULES)
@pytest.mark.parametrize("cool_steps", [None, 1, 10**7, 2.0**60])
def test_coolmomentum_is_as_cold_as_it_should_be_after_any_number_of_steps(
    schedule: str, cool_steps: float | None
) -> None:
    groups = parameters([[torch.ones(3)]])
    optimizer = make("cool", groups, {"rho_0": 0.9, "cool_steps": cool_steps, "schedule": schedule})
    for count in (0, 1, 10**7 - 1, *LONG, 2**60):
        optimizer.param_groups[0]["step"].fill_(count)
        wanted = cool_reference.rho_at(schedule, 0.9, cool_steps, count)
        assert optimizer.rho.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert 0 <= optimizer.rho.item() < 1
        step(optimizer, groups, [[torch.ones(3)]], None)
        assert optimizer.param_groups[0]["step"].item() == float(count + 1)
        assert all(p.isfinite().all() for p in values(groups))


@pytest.mark.parametrize("mode", ["keras", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_lodo_counts_its_updates_and_corrects_by_them_however_long_it_runs(dtype: torch.dtype, mode: str) -> None:
    betas = (0.9, 1 - 2.0**-24)  # a memory so long that the correction still matters
    for count in (0, *LONG[:3]):
        groups = parameters([[torch.ones(3, dtype=dtype)]])
        optimizer = make("lodo", groups, {"lr": 0.1, "depth": 1, "meta_betas": betas, "meta_eps_mode": mode})
        (net,) = optimizer.networks
        net.state["updates"].fill_(count)
        for i in range(3):
            step(optimizer, groups, [[torch.ones(3, dtype=dtype)]], None)
            assert net.state["updates"].item() == count + 1 + i
        assert all(t.isfinite().all() for t in (*values(groups), *net.state.values()))


@every_class
def test_a_run_that_never_learns_anything_stays_finite(name: str) -> None:
    """Hundreds of steps of zero gradients: KOALA's variance grows, arTuRO's filter winds up; nothing comes of it."""
    groups = parameters([[torch.ones(3), torch.ones(2, 2)]])
    optimizer = make(name, groups, FUSED[name])
    for _ in range(300):
        step(optimizer, groups, [[torch.zeros(3), torch.zeros(2, 2)]], 0.0)
    first = everything(groups, optimizer)
    assert all(
        t.isfinite().all() for t in [*first[0], *first[2].values(), *(t for own in first[1] for t in own.values())]
    )
    if name != "arturo":  # whose prior pulls
        assert all(torch.equal(p, torch.ones_like(p)) for p in values(groups))
    for _ in range(3):
        step(optimizer, groups, [[torch.ones(3), torch.ones(2, 2)]], 1.0)
    assert all(p.isfinite().all() and not torch.equal(p, torch.ones_like(p)) for p in values(groups))
    assert optimizer.skipped == 0
