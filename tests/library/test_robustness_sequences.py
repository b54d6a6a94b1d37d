"""Ten thousand random sequences of calls, each beside a model of what must hold after every call.

A sequence is a name, a seed and a list of calls; a call is the name of an operation and the seed of what it draws, so
that a call means the same when others are left out. One that fails is shortened, and printed as the line of
:func:`play` that repeats it. ``FALLLINE_SEED=1 pytest tests/test_robustness_sequences.py`` plays ten thousand others.
"""

import copy
import io
import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from bits import assert_bits
from methods import CLASSES
from torch import Tensor, nn

import fallline

NO_LOSS = "Four ways|no backward pass has reached"  # where a loss was never watched, or was
SEED = os.environ.get("FALLLINE_SEED", "0")
LENGTH = (4, 8)  # calls of a sequence
PARTS = 4  # tests that share a method's sequences, for the workers of pytest-xdist

Call = tuple[str, int]

# Sequences of each method; the methods whose step is slow (see benchmarks/README.md) get fewer of the ten thousand.
SEQUENCES = {
    "cool": 3600,
    "koala-v": 3800,
    "koala-m": 1200,
    "koala-pp": 700,
    "koala-orthogonal": 200,
    "arturo": 200,
    "lodo": 300,
}

# What the constructor is given: one of each.
MEASURED: dict[str, tuple[Any, ...]] = {"lr": (1.0, 0.3), "r": (None, 1.0), "alpha_r": (0.9, 0.0), "target": (0.0, 0.1)}
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "cool": {
        "lr": (0.1, 0.01),
        "rho_0": (0.9, 0.0),
        "cool_steps": (None, 3, 10),
        "schedule": ("exponential", "exponential_temperature", "linear"),
        "hold_steps": (0, 2),
        "decoupled": (False, True),
        "skip_nonfinite": (True,),
    },
    "koala-v": MEASURED | {"sigma": (0.1, 0.0), "q": (1.0, 0.01), "weight_decay_mode": ("coupled", "reference")},
    "koala-m": MEASURED
    | {"a": (0.9, 0.0, 1.0), "q_rule": ("reference", "paper", "fixed"), "average_init": ("params", "zeros")},
    "koala-pp": MEASURED | {"sigma": (0.1, 0.0), "q": (1.0, 0.01), "symmetric": (True, False)},
    "koala-orthogonal": MEASURED
    | {"metric": ("orthogonal", "orthogonal", "adam", "identity"), "q": (1e-3, 0.1), "beta": (0.95, 0.0)},
    "arturo": {
        "lr": (0.05, 0.003),
        "newton_iters": (0, 0, 2),
        "curvature": ("rls", "second-moment"),
        "intercept_init": ("grad", "centred"),
        "scope": ("global", "group", "tensor"),
        "eta_min": (0.0, 0.25),
    },
    "lodo": {
        "lr": (0.1, 0.01),
        "beta": (0.9, 0.0),
        "meta_lr": (0.01, 0.0),
        "depth": (0, 1, 3),
        "block_size": (4, 3),
        "padding": ("release", "ceil"),
        "preconditioner": ("network", "network", "diagonal", "global", "residual"),
        "meta_optimizer": ("adam", "sgd"),
        "meta_eps_mode": ("keras", "torch"),
        "second_moment": ("entry", "block"),
        "bucket_size": (None, 3),
    },
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
SHAPES = ((), (2,), (3, 2), (0,), (2, 1, 2), (4, 1))

# How often each operation is called, relative to the others.
OPERATIONS = {
    "step": 8,
    "step_with_closure": 3,
    "step_with_a_bad_gradient": 3,
    "step_without_gradients": 1,
    "step_with_zero_gradients": 1,
    "zero_grad": 1,
    "schedule": 2,
    "freeze_or_thaw": 2,
    "add_group": 2,
    "add_a_wrong_group": 1,
    "save": 2,
    "restore": 2,
    "load_into_itself": 1,
    "load_a_stranger": 1,
    "become_a_twin": 3,
    "step_with_a_sparse_gradient": 1,
    "step_with_a_loss_for_closure": 1,
}
KOALA_OPERATIONS = {
    "step_with_an_observed_loss": 3,
    "step_with_a_bad_loss": 3,
    "step_without_the_loss": 1,
    "step_with_an_empty_loss": 1,
    "predict": 5,
    "update": 5,
    "update_with_a_bad_loss": 1,
    "eval": 3,
    "train": 3,
    "posterior": 1,
}
COUNTERS = ("skipped", "roundings")  # of steps, also of skipped ones
BAD = (torch.nan, torch.inf, -torch.inf)


class Snapshot(NamedTuple):
    """Copies of all that a call may change."""

    values: list[Tensor]  # of the parameters
    state: dict[Tensor, dict[str, Tensor]]
    shared: dict[str, Tensor]
    settings: list[dict[str, Any]]


@dataclass
class Known:
    """What must hold now.

    Args:
        skipped: steps that were skipped.
        steps: steps that were taken.
        lrs: learning rate of each group.
        stage: of a KOALA.
        evaluating: whether a KOALA-M is at the filtered point of ``eval()``.
        predicted: the parameters' values before that ``eval()``.
        learned: for LODO, steps taken by the network under each parameter, by the parameter's number.
    """

    skipped: int = 0
    steps: int = 0
    lrs: list[float] = field(default_factory=list)
    stage: str = "resting"
    evaluating: bool = False
    predicted: list[Tensor] = field(default_factory=list)
    learned: dict[int, int] = field(default_factory=dict)

    def copy(self) -> "Known":
        return replace(self, lrs=list(self.lrs), learned=dict(self.learned))


def make(cls: type[fallline.Optimizer], params: Any, settings: dict[str, Any]) -> fallline.Optimizer:
    """An optimizer; the classes have arguments of their own, so their common type is not callable with all."""
    return cls(params, **settings)


class World:
    """Parameters, their optimizer, and what is known of both. A method that :data:`OPERATIONS` names is a call."""

    def __init__(self, name: str, rng: random.Random) -> None:
        """Draw a class's settings, and parameters in one to three groups, some of them frozen."""
        self.name, self.cls, self.koala = name, CLASSES[name], name.startswith("koala")
        self.settings = {key: rng.choice(values) for key, values in SETTINGS[name].items()}
        self.settings["weight_decay"] = rng.choice((0.0, 0.1))
        self.dtypes = [rng.choice(DTYPES)] if rng.random() < 0.8 else [torch.float32, torch.bfloat16]
        if rng.random() < 0.25 and name != "lodo":  # whose fused graphs take seconds for each set of shapes
            self.settings["fused"] = True  # and a quarter of a second, once, for each set of dtypes
            self.dtypes = [rng.choice((torch.float32, torch.bfloat16))]
        if torch.bfloat16 in self.dtypes:
            self.settings["stochastic_rounding"] = rng.random() < 0.3
        self.known = Known()
        self.saved: tuple[Any, list[Tensor], Known] | None = None
        groups = [self.new_group(rng) for _ in range(rng.randint(1, 3))]
        self.params: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.opt = make(self.cls, groups, self.settings)
        self.known.lrs = [group.get("lr", self.settings["lr"]) for group in groups]

    def new_group(self, rng: random.Random) -> dict[str, Any]:
        group: dict[str, Any] = {"params": [self.new_parameter(rng) for _ in range(rng.randint(1, 2))]}
        if rng.random() < 0.5:
            group["lr"] = self.settings["lr"] / 2
        return group

    def new_parameter(self, rng: random.Random) -> nn.Parameter:
        value = torch.randn(rng.choice(SHAPES), generator=generator(rng), dtype=torch.float64)
        value = value.to(self.dtypes[0] if self.name == "lodo" else rng.choice(self.dtypes))  # a bucket has one dtype
        if value.dim() == 2 and rng.random() < 0.5:
            value = value.t()
        return nn.Parameter(value, requires_grad=rng.random() < 0.85)

    # -- looking ----------------------------------------------------------------------------------------------

    def all(self) -> Snapshot:
        """Everything that a call may change, copied, but what counts the calls."""
        values = [p.detach().clone() for p in self.params]
        state = {p: {key: t.clone() for key, t in own.items()} for p, own in self.opt.state.items()}
        return Snapshot(values, state, *self.groups())

    def groups(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The shared scalars, copied, and the settings of each group. (That they are shared, :meth:`check` knows.)"""
        groups = self.opt.param_groups
        shared = {key: t.clone() for key, t in groups[0].items() if isinstance(t, Tensor) and key not in COUNTERS}
        settings = [{key: value for key, value in group.items() if not isinstance(value, Tensor)} for group in groups]
        for own in settings:
            own["params"] = list(map(id, own["params"]))
        return shared, settings

    def assert_unchanged(self, before: Snapshot, but: str = "", groups: int | None = None) -> None:
        """The first ``groups`` groups, or all, are as they were, ``but`` for one setting or scalar."""
        shared, settings = self.groups()
        assert_bits([p.detach() for p in self.params[: len(before.values)]], before.values)
        for p, own in before.state.items():  # a thawed parameter may have got its state: it is as good as new
            assert_bits(self.opt.state[p], own)
        for now, then in [(shared, before.shared), *zip(settings[:groups], before.settings, strict=True)]:
            for key, value in then.items():
                if key != but:
                    assert_bits(now[key], value)

    def check(self) -> None:
        """What holds after every call."""
        first = self.opt.param_groups[0]
        assert self.opt.skipped.item() == self.known.skipped
        assert self.opt.skipped.dtype == torch.int64
        assert len(self.opt.param_groups) == len(self.known.lrs)
        shared = [key for key, value in first.items() if isinstance(value, Tensor)]
        for group, lr in zip(self.opt.param_groups, self.known.lrs, strict=True):
            assert group["lr"] == lr
            assert not group["maximize"]
            assert all(group[key] is first[key] for key in shared), "a shared scalar is no longer shared"
        known = set(self.params)
        assert all(p in known for p in self.opt.state), "a key of the state is no parameter"
        if self.koala:
            assert first["stage"] == self.known.stage
            assert first["evaluating"] == self.known.evaluating
        if self.name == "cool":
            assert first["step"].item() == self.known.steps
        if self.name == "koala-v":
            assert first["covariance"] >= 0
        if self.name == "koala-m":
            p11, p12, p22 = (first[key].item() for key in ("p11", "p12", "p22"))
            assert min(p11, p22, p11 * p22 * (1 + 1e-9) - p12 * p12) >= 0, "the covariance is not positive"
        if self.name == "lodo":
            for i, p in enumerate(self.params):
                if "updates" in (own := self.opt.state.get(p, {})):
                    assert own["updates"].item() == self.known.learned.get(i, 0)
        tensors = {"parameter": list(self.params), "scalar": [first[key] for key in shared]}
        for own in self.opt.state.values():
            for key, t in own.items():
                tensors.setdefault(key, []).append(t)
        if not torch.cat([t.detach().flatten() for ts in tensors.values() for t in ts]).isfinite().all():
            pytest.fail(
                f"not finite: {[(key, t) for key, ts in tensors.items() for t in ts if not t.isfinite().all()]}"
            )

    # -- doing ------------------------------------------------------------------------------------------------

    def give_gradients(self, rng: random.Random, share: float = 0.85) -> list[nn.Parameter]:
        """Random gradients for most parameters that are not frozen; returns those that will move."""
        g = generator(rng)
        self.opt.zero_grad()  # which also drops the loss that was observed before a step that was refused
        for p in self.params:
            if p.requires_grad and rng.random() < share:
                p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        return self.moving

    @property
    def moving(self) -> list[nn.Parameter]:
        return [p for p in self.params if p.grad is not None and p.numel()]

    def draw_loss(self, rng: random.Random) -> Any:
        if not self.koala:
            return None
        value = rng.choice((0.0, 0.5, 1.0, 2.0, -0.5))
        return rng.choice((value, torch.tensor(value), torch.tensor([value, value + 1])))

    @property
    def forbidden(self) -> bool:
        """Whether the stage forbids ``step``."""
        return self.known.evaluating or self.known.stage == "filtered"

    def do_step(self, step: Callable[[], Any], bad: bool = False) -> None:
        """A step with the gradients that are there; ``bad`` ones, or a bad loss, must make it nothing."""
        moving = self.moving
        if not moving:
            before = self.all()
            step()
            self.assert_unchanged(before)
        elif self.forbidden:
            with self.refused(RuntimeError, "call train|cannot follow"):
                step()
        elif bad:
            before = self.all()
            step()
            self.known.stage = "resting"
            self.known.skipped += 1
            self.assert_unchanged(before, "stage")
        else:
            still = [p for p in self.params if p not in set(moving)]
            values, state = [p.detach().clone() for p in still], copy.deepcopy([self.own(p) for p in still])
            step()
            self.known.stage = "resting"
            self.took_a_step(moving)
            assert_bits([p.detach() for p in still], values)
            assert_bits([self.own(p) for p in still], state)

    def own(self, p: Tensor) -> dict[str, Tensor]:
        """A parameter's state; LODO keeps that of several together, where it may change for the others."""
        return {} if self.name == "lodo" else dict(self.opt.state.get(p, {}))

    def took_a_step(self, moving: list[nn.Parameter]) -> None:
        self.known.steps += 1
        if self.name == "lodo":
            for net in self.opt.networks:  # type: ignore[attr-defined]
                if set(net.parameters) & set(moving):
                    i = self.number(net.parameters[0])
                    self.known.learned[i] = self.known.learned.get(i, 0) + 1

    def number(self, p: Tensor) -> int:
        return next(i for i, q in enumerate(self.params) if q is p)

    @contextmanager
    def refused(self, error: type[Exception], match: str) -> Iterator[None]:
        before = self.all()
        with pytest.raises(error, match=match):
            yield
        self.assert_unchanged(before)

    def step(self, rng: random.Random) -> None:
        self.give_gradients(rng)
        loss = self.draw_loss(rng)
        self.do_step(lambda: self.opt.step(loss=loss))

    def step_with_closure(self, rng: random.Random) -> None:
        self.give_gradients(rng)
        grads = [p.grad for p in self.params]
        loss = 1.0 + rng.random()

        def closure() -> float:
            assert torch.is_grad_enabled()
            self.opt.zero_grad()
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g
            return loss

        def step() -> None:
            assert self.opt.step(closure) == loss

        self.do_step(step)

    def step_with_an_observed_loss(self, rng: random.Random) -> None:
        self.opt.zero_grad()
        wanted = [p for p in self.params if p.requires_grad and p.numel() and rng.random() < 0.85]
        if wanted:
            total = sum(((p - 0.5).abs().square() / 2).sum().double() for p in wanted)
            assert isinstance(total, Tensor)
            assert isinstance(self.opt, fallline.KOALA)
            pieces = rng.choice((1, 2))
            for _ in range(pieces):
                (self.opt.observe(total) / pieces).backward(retain_graph=True)
        self.do_step(lambda: self.opt.step())

    def step_with_a_bad_gradient(self, rng: random.Random) -> None:
        moving = self.give_gradients(rng)
        if moving:
            g = rng.choice(moving).grad
            assert g is not None
            g.view(-1)[rng.randrange(g.numel())] = rng.choice(BAD)
        self.do_step(lambda: self.opt.step(loss=1.0), bad=True)

    def step_with_a_bad_loss(self, rng: random.Random) -> None:
        self.give_gradients(rng)
        bad = rng.choice(BAD)
        loss = rng.choice((bad, torch.tensor(bad), torch.tensor([1.0, bad]), 1e200))  # whose square overflows
        self.do_step(lambda: self.opt.step(loss=loss), bad=True)

    def step_without_gradients(self, rng: random.Random) -> None:
        self.opt.zero_grad()
        self.do_step(lambda: self.opt.step(loss=rng.choice((None, 1.0, torch.nan))))

    def step_with_zero_gradients(self, rng: random.Random) -> None:
        """As torch.distributed.checkpoint calls it, without a loss: a KOALA does nothing, the others their step."""
        moving = self.give_gradients(rng)
        for p in moving:
            assert p.grad is not None
            p.grad.zero_()
        before = self.all()
        if self.koala and moving and not self.forbidden:
            self.opt.step()
            self.assert_unchanged(before)
        else:
            self.do_step(lambda: self.opt.step())

    def step_without_the_loss(self, rng: random.Random) -> None:
        if self.give_gradients(rng):
            with self.refused(RuntimeError, "call train|cannot follow" if self.forbidden else NO_LOSS):
                self.opt.step()

    def step_with_an_empty_loss(self, rng: random.Random) -> None:
        if self.give_gradients(rng) and not self.forbidden:
            with self.refused(ValueError, "the loss is empty"):
                self.opt.step(loss=torch.zeros(0))

    def step_with_a_sparse_gradient(self, rng: random.Random) -> None:
        moving = self.give_gradients(rng)
        flat = [p for p in moving if p.dim()]
        if flat:
            p = rng.choice(flat)
            assert p.grad is not None
            p.grad = p.grad.to_sparse()
            with self.refused(RuntimeError, "sparse" if not self.forbidden else "sparse|call train|cannot follow"):
                self.opt.step(loss=1.0)
            p.grad = None

    def step_with_a_loss_for_closure(self, rng: random.Random) -> None:
        self.give_gradients(rng)
        with self.refused(TypeError, r"step\(loss=loss\)"):
            self.opt.step(torch.tensor(1.0))  # type: ignore[arg-type]

    def zero_grad(self, rng: random.Random) -> None:
        self.give_gradients(rng)
        before, to_none = self.all(), rng.random() < 0.5
        self.opt.zero_grad(set_to_none=to_none)
        assert all(p.grad is None or (not to_none and not p.grad.any()) for p in self.params)
        self.assert_unchanged(before)

    def schedule(self, rng: random.Random) -> None:
        factor = rng.choice((0.0, 0.5, 0.9, 1.0))
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.opt, lambda epoch: factor if epoch else 1.0)
        self.opt.zero_grad()
        self.opt.step()  # a scheduler wants to have seen one; without gradients it is nothing
        scheduler.step()
        self.known.lrs = [group["initial_lr"] * factor for group in self.opt.param_groups]
        del self.opt.step  # the scheduler's, which ends with it

    def freeze_or_thaw(self, rng: random.Random) -> None:
        for p in self.params:
            if rng.random() < 0.3:
                p.requires_grad_(not p.requires_grad)
                p.grad = None

    def add_group(self, rng: random.Random) -> None:
        before = self.all()
        group = self.new_group(rng)
        self.opt.add_param_group(group)
        self.known.lrs.append(group["lr"])
        # Of the scalars, average_init="zeros" adds the distance of the new parameters from their average, 0.
        self.assert_unchanged(before, "spread", groups=-1)
        self.params += group["params"]

    def add_a_wrong_group(self, rng: random.Random) -> None:
        p = self.new_parameter(rng)
        cases: list[tuple[dict[str, Any], str]] = [
            ({"params": [p], "lr": -1.0}, "^lr="),
            ({"params": [p], "weight_decay": torch.nan}, "^weight_decay="),
            ({"params": [p], "fused": "yes"}, "^fused="),
            ({"params": [p, self.params[0]]}, "more than one parameter group"),
            ({"params": [p * 1 if p.requires_grad else p.requires_grad_() * 1]}, "non-leaf"),
        ]
        wrong, match = rng.choice(cases)
        with self.refused(ValueError, match):
            self.opt.add_param_group(wrong)

    def save(self, rng: random.Random) -> None:
        before = self.all()
        file = io.BytesIO()
        torch.save(self.opt.state_dict(), file)
        self.assert_unchanged(before)
        self.saved = file.getvalue(), [p.detach().clone() for p in self.params], self.known.copy()

    def restore(self, rng: random.Random) -> None:
        """Back to what was saved, as after a crash; groups that joined since are an error."""
        if self.saved is None:
            return
        data, values, known = self.saved
        state_dict = torch.load(io.BytesIO(data), weights_only=True)
        if len(values) != len(self.params):
            with self.refused(ValueError, "different number of parameter groups"):
                self.opt.load_state_dict(state_dict)
            return
        self.opt.load_state_dict(state_dict)
        with torch.no_grad():
            for p, value in zip(self.params, values, strict=True):
                p.copy_(value)
        self.known = known.copy()

    def load_into_itself(self, rng: random.Random) -> None:
        before = self.all()
        self.opt.load_state_dict(self.opt.state_dict())
        self.assert_unchanged(before)

    def load_a_stranger(self, rng: random.Random) -> None:
        groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(len(self.known.lrs) + 1)]
        stranger = make(self.cls, groups, {})
        with self.refused(ValueError, "different number of parameter groups"):
            self.opt.load_state_dict(stranger.state_dict())

    def become_a_twin(self, rng: random.Random) -> None:
        """Save and load in one of the ways there are; original and twin go on to the same bits."""
        way = rng.choice(("memory", "file", "deepcopy", "pickle"))
        twin = copy.copy(self)
        twin.known = self.known.copy()
        if way == "deepcopy":
            twin.params, twin.opt = copy.deepcopy((self.params, self.opt))
        elif way == "pickle":
            twin.params, twin.opt = pickle.loads(pickle.dumps((self.params, self.opt)))
        else:
            twin.params = [nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in self.params]
            own = dict(zip(self.params, twin.params, strict=True))
            groups = [{"params": [own[p] for p in group["params"]], "lr": 7.0} for group in self.opt.param_groups]
            twin.opt = make(self.cls, groups, self.settings)
            state_dict = self.opt.state_dict()
            if way == "file":
                file = io.BytesIO()
                torch.save(state_dict, file)
                file.seek(0)
                state_dict = torch.load(file, weights_only=True)
            twin.opt.load_state_dict(state_dict)
        seed = rng.random()
        for world in (self, twin):
            world.go_on(random.Random(seed))
        twin.assert_twin(self)
        self.params, self.opt, self.known = twin.params, twin.opt, twin.known

    def go_on(self, rng: random.Random) -> None:
        """One legal step, whatever the stage."""
        if self.known.evaluating:
            self.train(rng)
        if self.known.stage == "filtered":
            self.predict(rng)
        moving = self.give_gradients(rng)
        self.opt.step(loss=self.draw_loss(rng))
        if moving:
            self.known.stage = "resting"
            self.took_a_step(moving)

    def assert_twin(self, other: "World") -> None:
        assert_bits([p.detach() for p in self.params], [p.detach() for p in other.params])
        for p, q in zip(self.params, other.params, strict=True):
            assert_bits(dict(self.opt.state.get(p, {})), dict(other.opt.state.get(q, {})))
        (mine, settings), (its, its_settings) = self.groups(), other.groups()
        assert_bits(mine, its)
        for own, others in zip(settings, its_settings, strict=True):
            assert_bits({**own, "params": 0}, {**others, "params": 0})

    # -- the KOALAs' two stages -------------------------------------------------------------------------------

    @property
    def filter(self) -> fallline.KOALA:
        assert isinstance(self.opt, fallline.KOALA)
        return self.opt

    @property
    def moves_between(self) -> bool:
        """Whether predicted and filtered point differ: of a KOALA-M."""
        return self.name == "koala-m"

    def predict(self, rng: random.Random) -> None:
        if self.known.evaluating or self.known.stage == "predicted":
            with self.refused(RuntimeError, "call train|cannot follow"):
                self.filter.predict()
            return
        before = self.all()
        was, self.known.stage = self.known.stage, "predicted"
        self.filter.predict()
        if was == "resting":
            self.assert_unchanged(before, "stage")
        elif not self.moves_between:
            assert_bits([p.detach() for p in self.params], before.values)

    def update(self, rng: random.Random, bad: bool = False) -> None:
        self.give_gradients(rng)
        loss: Any = rng.choice(BAD) if bad else self.draw_loss(rng)
        if self.known.evaluating or self.known.stage != "predicted":
            with self.refused(RuntimeError, "call train|cannot follow"):
                self.filter.update(loss)
            return
        if rng.random() < 0.2:
            with self.refused(RuntimeError, NO_LOSS):
                self.filter.update()
        before = self.all()
        self.filter.update(loss, rng.choice((None, None, 4.0)))
        self.known.stage = "filtered"
        self.known.skipped += bad
        if bad:  # no measurement: the parameters stay predicted, and only what a prediction does is done to velocities
            assert_bits([p.detach() for p in self.params], before.values)
            if not self.moves_between:
                self.assert_unchanged(before, "stage")
        else:
            still = [(p.detach(), v) for p, v in zip(self.params, before.values, strict=True) if p.grad is None]
            assert_bits([p for p, _ in still], [v for _, v in still])

    def update_with_a_bad_loss(self, rng: random.Random) -> None:
        self.update(rng, bad=True)

    def eval(self, rng: random.Random) -> None:
        before = self.all()
        self.filter.eval()
        if self.moves_between and self.known.stage != "filtered" and not self.known.evaluating:
            self.known.evaluating = True
            self.known.predicted = before.values
        else:
            self.assert_unchanged(before)

    def train(self, rng: random.Random) -> None:
        before = self.all()
        self.filter.train()
        if self.known.evaluating:
            self.known.evaluating = False
            assert_bits([p.detach() for p in self.params[: len(self.known.predicted)]], self.known.predicted)
            for own in self.opt.state.values():
                assert "predicted" not in own
        else:
            self.assert_unchanged(before)

    def posterior(self, rng: random.Random) -> None:
        before = self.all()
        with self.filter.posterior():
            assert all(p.detach().isfinite().all() for p in self.params)
        self.assert_unchanged(before)


def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(32))


# -- sequences ------------------------------------------------------------------------------------------------------


def draw(name: str, seed: str) -> list[Call]:
    """A sequence's calls."""
    rng = random.Random(f"calls {name} {seed}")
    weights = OPERATIONS | (KOALA_OPERATIONS if name.startswith("koala") else {})
    chosen = rng.choices(list(weights), list(weights.values()), k=rng.randint(*LENGTH))
    return [(operation, rng.getrandbits(32)) for operation in chosen]


def play(name: str, seed: str, calls: list[Call]) -> World:
    """Make the calls, and check after each of them."""
    world = World(name, random.Random(f"world {name} {seed}"))
    world.check()
    for operation, number in calls:
        getattr(world, operation)(random.Random(number))
        world.check()
    return world


def error_of(name: str, seed: str, calls: list[Call]) -> BaseException | None:
    try:
        play(name, seed, calls)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


def shortened(name: str, seed: str, calls: list[Call]) -> list[Call]:
    """Without the calls that the failure does not need."""
    i = 0
    while i < len(calls):
        fewer = calls[:i] + calls[i + 1 :]
        if error_of(name, seed, fewer) is None:
            i += 1
        else:
            calls, i = fewer, 0
    return calls


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SEQUENCES)
def test_random_sequences_of_calls_keep_every_promise(name: str, part: int) -> None:
    for i in range(part, SEQUENCES[name], PARTS):
        seed = f"{SEED}-{i}"
        calls = draw(name, seed)
        if error_of(name, seed, calls) is not None:
            calls = shortened(name, seed, calls)
            settings = World(name, random.Random(f"world {name} {seed}")).settings
            pytest.fail(f"play({name!r}, {seed!r}, {calls!r})\nfails with {settings}:\n{error_of(name, seed, calls)!r}")


def test_the_sequences_are_ten_thousand_and_make_every_call() -> None:
    assert sum(SEQUENCES.values()) == 10_000
    made = {operation for i in range(200) for operation, _ in draw("koala-m", f"{SEED}-{i}")}
    assert made == OPERATIONS.keys() | KOALA_OPERATIONS.keys()


def test_a_sequence_that_fails_is_shortened_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "zero_grad", lambda self, rng: self.known.lrs.append(0.0))
    calls = [("step", 1), ("zero_grad", 2), ("step", 3)]
    assert shortened("cool", "0", calls) == [("zero_grad", 2)]
    assert draw("cool", "0") == draw("cool", "0") != draw("cool", "1")
