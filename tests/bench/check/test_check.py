"""`fallline check`: ours keep every promise, and each promise is broken by the class that it was written against."""

import copy
import ctypes
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.subclasses import WrapperSubclass

import fallline
from fallline.bench.check import show
from fallline.bench.check.limits import Limits, status, watched
from fallline.bench.check.promises import GROUPS, PROMISES
from fallline.bench.check.promises._promise import LINES
from fallline.bench.check.run import check, described
from fallline.bench.check.subject import Loss, get_subject, parse_settings
from fallline.bench.check.trial import Outcome, Verdict, attempt, program

HERE = Path(__file__)
PAGE = HERE.parents[3] / "docs" / "check.md"
ALONE = [one for one in PROMISES.values() if one.ranks == 1]
COMPILED = {"speed/compiles-right", "speed/compiles-once"}
OURS = ["arturo", "coolmomentum", "koala-m", "koala-metric", "koala-orthogonal", "koala-pp", "koala-v", "lodo"]


# -- a sound optimizer, and what can be wrong with one ------------------------------------------------------------


class Sound(torch.optim.Optimizer):
    """SGD with momentum, written plainly, which keeps every promise."""

    def __init__(self, params: Any, lr: Any = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        if not 0.0 <= lr < float("inf"):
            raise ValueError(f"lr={lr}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return self.pass_on(closure)

    def pass_on(self, closure: Any) -> Any:
        value = None if closure is None else self.evaluate(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, group)
                else:
                    self.rest(p)
        return value

    @torch.enable_grad()
    def evaluate(self, closure: Any) -> Any:
        return closure()

    def rest(self, p: Tensor) -> None:
        """What is done with a parameter that has no gradient."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if g.is_sparse:
            raise RuntimeError("sparse gradients are not supported")
        mean = self.mean(p)
        mean.mul_(group["momentum"]).add_(-g if group["maximize"] else g)
        self.write(p, group["lr"] * mean)

    def mean(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["mean"] = torch.zeros_like(p)
        mean: Tensor = state["mean"]
        return mean

    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update)

    def load_state_dict(self, state_dict: Any) -> None:
        self.inspect(state_dict)
        super().load_state_dict(copy.deepcopy(state_dict))

    def inspect(self, state_dict: Any) -> None:
        """Refuse what is no state of these parameters."""
        for i, p in enumerate(p for group in self.param_groups for p in group["params"]):
            self.inspect_one(p, state_dict["state"].get(i, {}))

    def inspect_one(self, p: Tensor, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"the state of a parameter is {state!r}, which is no dictionary")
        if "mean" in state and state["mean"].shape != p.shape:
            raise ValueError(f"the state is of a parameter of the shape {tuple(state['mean'].shape)}")


class Climbs(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.add_(update)


class TakesAnything(Sound):
    def __init__(self, params: Any, lr: Any = 0.1, **unknown: Any) -> None:
        super().__init__(params, lr, unknown.get("momentum", 0.9), maximize=unknown.get("maximize", False))


class TakesNegativeRates(Sound):
    def __init__(self, params: Any, lr: Any = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        super().__init__(params, abs(lr), momentum, maximize=maximize)
        self.defaults["lr"] = lr


class OneRateForAll(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, {**group, "lr": self.param_groups[0]["lr"]})


class KeepsItsFirstRate(Sound):
    def __init__(self, params: Any, lr: Any = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        super().__init__(params, lr, momentum, maximize=maximize)
        for group in self.param_groups:
            group["first"] = group["lr"]

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, {**group, "lr": group.get("first", group["lr"])})


class MovesTheIdle(Sound):
    def rest(self, p: Tensor) -> None:
        p.mul_(0.5)


class WantsALoss(Sound):
    """It demands a closure of those who name one."""

    @torch.no_grad()
    def step(self, closure: Any = ...) -> Any:
        if closure is None:
            raise RuntimeError("a closure is needed")
        return self.pass_on(None if closure is ... else closure)


class WritesGradients(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, group)
        if g.is_contiguous():
            g.mul_(0.5)


class KeepsGradients(Sound):
    """It looks at the gradient of the step before as well, of which it keeps no copy."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g if g.is_sparse else g + 1e-3 * self.state[p].get("last", g), group)
        self.state[p]["last"] = g

    def mean(self, p: Tensor) -> Tensor:
        mean: Tensor = self.state[p].setdefault("mean", torch.zeros_like(p))
        return mean


class DropsSparse(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if not g.is_sparse:
            super().move(p, g, group)


class ThroughData(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.data.sub_(update)


class MovesToOtherMemory(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update)
        p.data = p.data.clone()


class WalksAlongTheMemory(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.reshape(-1).sub_(update.reshape(-1))


class ReadsStridesWrong(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if p.is_contiguous() and not g.is_contiguous() and g.stride()[0] == 1:
            g = g.t().reshape(g.shape)
        super().move(p, g, group)


class SharesWhatItLoads(Sound):
    def load_state_dict(self, state_dict: Any) -> None:
        self.inspect(state_dict)
        torch.optim.Optimizer.load_state_dict(self, state_dict)


class LosesPrecisionOnLoad(Sound):
    def mean(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["mean"] = torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        mean: Tensor = state["mean"]
        return mean

    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update.to(p.dtype))


class ForgetsOnDeepcopy(Sound):
    def __deepcopy__(self, memo: Any) -> "ForgetsOnDeepcopy":
        return ForgetsOnDeepcopy([memo.get(id(p), p) for p in self.param_groups[0]["params"]])


class CannotBePickled(Sound):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle this")

    def __deepcopy__(self, memo: Any) -> "CannotBePickled":
        twin = CannotBePickled([memo.get(id(p), p) for p in self.param_groups[0]["params"]])
        twin.load_state_dict(self.state_dict())
        return twin


class SavesAnObject(Sound):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "owner": SavesAnObject}


class KeyedByText(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, group)
        self.state["steps"]["count"] = 1  # type: ignore[index]


class DeafToHooks(Sound):
    def load_state_dict(self, state_dict: Any) -> None:
        hooks, self._optimizer_load_state_dict_pre_hooks = (
            self._optimizer_load_state_dict_pre_hooks,
            type(self._optimizer_load_state_dict_pre_hooks)(),
        )
        super().load_state_dict(state_dict)
        self._optimizer_load_state_dict_pre_hooks = hooks


class CallsTwice(Sound):
    @torch.enable_grad()
    def evaluate(self, closure: Any) -> Any:
        closure()
        return closure()


class CallsWithoutGradients(Sound):
    @torch.no_grad()
    def evaluate(self, closure: Any) -> Any:
        try:
            return closure()
        except RuntimeError:
            return None


class SilentAboutTheLoss(Sound):
    @torch.enable_grad()
    def evaluate(self, closure: Any) -> Any:
        closure()


class Warns(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        if not torch.compiler.is_compiling():
            warnings.warn("this is deprecated", UserWarning, stacklevel=2)
        super().write(p, update)


class HalfwayMaximize(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, {**group, "maximize": False})


class OverflowsInHalf(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update * (p * 0 + 1e5) / 1e5)


class StateInFloat32(Sound):
    def mean(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            like = None if p.is_complex() or p.dtype != torch.float64 else torch.float32
            state["mean"] = torch.zeros_like(p, dtype=like)
        mean: Tensor = state["mean"]
        return mean


class SquaresComplex(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update / (1 + 0.1 * (update * update)).sqrt() if p.is_complex() else update)


class HidesNan(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g if g.is_sparse else g.nan_to_num(nan=1.0), group)


class WantsRows(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update * (p.shape[0] / p.shape[0] if p.numel() else 1.0))


class MeansOverNothing(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.seen = 1 / p.numel()
        super().move(p, g, group)


class ReadsTheNorm(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(update, alpha=1.0 if torch.compiler.is_compiling() else min(1.0, 1e9 + float(update.abs().sum())))


class StateOnTheCpu(Sound):
    def mean(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["mean"] = torch.zeros(p.shape, dtype=p.dtype)
        mean: Tensor = state["mean"]
        return mean


class Hoards(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        if not torch.compiler.is_compiling():
            vars(self).setdefault("updates", []).append(update)
        super().write(p, update)


class CountsInPython(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        group["seen"] = group.get("seen", "") + "i"
        super().move(p, g, group)


class ForgetsItsCount(Sound):
    """It takes smaller steps as it goes, and its count is in no state."""

    count = 0

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.count += p is self.param_groups[0]["params"][0]
        super().move(p, g, {**group, "lr": group["lr"] / (10 + self.count)})


class NormalisesGroups(Sound):
    """The length of a group's step depends on how many parameters are in it."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, {**group, "lr": group["lr"] / len(group["params"])})


class BakesItsRateIn(Sound):
    """Under the compiler only, where the rate of the first step is taken for a constant."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            group = {**group, "lr": 0.1}
        super().move(p, g, group)


class IgnoresTheFrozen(Sound):
    """It makes state for all in the constructor, the frozen too."""

    def add_param_group(self, param_group: Any) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            self.mean(p)


class FollowsItsOwnLoss(Sound):
    """It is given the loss, and does not average it over processes."""

    scale: Any = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None, *, loss: Any = None) -> Any:
        self.scale = 1.0 if loss is None else loss.abs().tanh()
        return self.pass_on(closure)

    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_((update * self.scale).to(p.dtype))


class TakesDuplicates(Sound):
    def add_param_group(self, param_group: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().add_param_group(param_group)


class WantsPythonsNumbers(Sound):
    def __init__(self, params: Any, lr: Any = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        if not isinstance(lr, float | Tensor):
            raise TypeError(f"lr={lr!r} is no number")
        super().__init__(params, lr, momentum, maximize=maximize)


class LoadsText(Sound):
    def inspect_one(self, p: Tensor, state: Any) -> None:
        if isinstance(state, dict):
            super().inspect_one(p, state)


class LoadsOtherSizes(Sound):
    def inspect_one(self, p: Tensor, state: Any) -> None:
        if not isinstance(state, dict):
            super().inspect_one(p, state)


class LooksTooLate(Sound):
    """It refuses a state when it has loaded a part of it."""

    def inspect_one(self, p: Tensor, state: Any) -> None:
        super().inspect_one(p, state)
        self.state[p] = copy.deepcopy(state)


class KeepsPlaces(Sound):
    """What it loads goes to the parameters that are at the same places."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, group)
        if not torch.compiler.is_compiling():
            self.state[p]["place"] = [id(q) for q in group["params"]].index(id(p))

    def mean(self, p: Tensor) -> Tensor:
        mean: Tensor = self.state[p].setdefault("mean", torch.zeros_like(p))
        return mean

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            found = {self.state[p]["place"]: self.state[p] for p in group["params"] if "place" in self.state[p]}
            for i, p in enumerate(group["params"]):
                if i in found:
                    self.state[p] = found[i]


class TakesTheRoot(Sound):
    """Of the rate, which is NaN below 0."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g, {**group, "lr": group["lr"] if group["lr"] >= 0 else float("nan")})


class FoldsTheRateIn(Sound):
    """A NaN is kept from the parameters, but not from the state."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        super().move(p, g if g.is_sparse else g * group["lr"], {**group, "lr": 1.0})

    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_(torch.where(update.isnan(), 0, update))


class SkipsSubclasses(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        if type(p.detach()) is Tensor or torch.compiler.is_compiling() or not isinstance(update, WrapperSubclass):
            super().write(p, update)


class CountsBackwards(Sound):
    """It takes the mean over the backward passes, which it counts."""

    def add_param_group(self, param_group: Any) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self.count)

    def count(self, p: Tensor) -> None:
        self.seen: Any = {**getattr(self, "seen", {}), id(p): getattr(self, "seen", {}).get(id(p), 0) + 1}

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        passes = getattr(self, "seen", {}).pop(id(p), 1)
        super().move(p, g if passes == 1 else g / passes, group)


class HasModes(Sound):
    """It steps in training mode alone, and its users evaluate in the other."""

    def __init__(self, params: Any, lr: Any = 0.1, momentum: float = 0.9, *, maximize: bool = False) -> None:
        super().__init__(params, lr, momentum, maximize=maximize)
        self.eval()

    def train(self) -> None:
        self.param_groups[0]["training"] = True

    def eval(self) -> None:
        self.param_groups[0]["training"] = False

    def pass_on(self, closure: Any) -> Any:
        if not self.param_groups[0]["training"]:
            raise RuntimeError("call train() before you step")
        return super().pass_on(closure)


class Slow(Sound):
    """At its default rate fifty steps change the loss in the fifth digit."""

    def __init__(self, params: Any, lr: Any = 1e-6, momentum: float = 0.9, *, maximize: bool = False) -> None:
        super().__init__(params, lr, momentum, maximize=maximize)


class StartsLate(Sound):
    """Its first steps rest."""

    def write(self, p: Tensor, update: Tensor) -> None:
        self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
        p.sub_(update * (self.state[p]["steps"] > 6))


class Throws(Sound):
    """It draws the length of each step."""

    def pass_on(self, closure: Any) -> Any:
        self.length = torch.rand(())
        return super().pass_on(closure)

    def write(self, p: Tensor, update: Tensor) -> None:
        p.sub_((update * self.length.to(p.device)).to(p.dtype))


class Collapses(Sound):
    """It crashes when it is saved, hangs when it is copied, and leaves when it is told a wrong rate."""

    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        if lr < 0:
            sys.exit("no such rate")
        super().__init__(params, lr)

    def state_dict(self) -> Any:
        ctypes.string_at(0)

    def __deepcopy__(self, memo: Any) -> Any:
        time.sleep(600)


RESUMED = {f"state/{name}" for name in ("resumes", "resumes-from-a-file", "two-groups-resume")}
COPIED = {"state/deepcopies", "state/pickles"}
CHECKPOINTED = {"state/distributed-checkpoint", "state/distributed-checkpoint-flat", "state/in-another-order"}
MUTANTS: dict[type[Sound], set[str]] = {
    Sound: set(),
    Climbs: {"learns/in-float32", "learns/in-float64", "learns/a-network"},
    TakesAnything: {"contract/unknown-settings-refused"},
    TakesNegativeRates: {"contract/negative-lr-refused"},
    OneRateForAll: {"groups/own-lr"},
    NormalisesGroups: {"groups/two-alike-are-one", "precision/empty"},
    KeepsItsFirstRate: {"groups/lr-set-by-hand", "run/lr-as-a-tensor"},
    IgnoresTheFrozen: {"groups/frozen-and-thawed", "precision/made-double-afterwards"},
    MovesTheIdle: {"groups/frozen-and-thawed", "gradients/none-at-all", "gradients/one-missing"},
    WantsALoss: {"gradients/zero-gradients-without-a-loss", *CHECKPOINTED},
    WritesGradients: {"gradients/never-written"},
    KeepsGradients: {"gradients/never-kept"},
    DropsSparse: {"gradients/sparse"},
    ReadsStridesWrong: {"gradients/strided"},
    MovesToOtherMemory: {"gradients/in-place"},
    ThroughData: {"gradients/seen-by-autograd"},
    ForgetsItsCount: {*RESUMED, *COPIED, *CHECKPOINTED},
    SavesAnObject: {"state/resumes-from-a-file"},
    LosesPrecisionOnLoad: {"state/bfloat16-state-keeps-its-precision"},
    ForgetsOnDeepcopy: {"state/deepcopies"},
    CannotBePickled: {"state/pickles"},
    SharesWhatItLoads: {"state/a-load-shares-nothing"},
    KeyedByText: {"state/keys-are-parameters", *CHECKPOINTED},
    DeafToHooks: {"state/hooks"},
    CallsTwice: {"run/closure"},
    CallsWithoutGradients: {"run/closure"},
    SilentAboutTheLoss: {"run/closure"},
    Warns: {"run/quiet"},
    HalfwayMaximize: {"run/maximize"},
    OverflowsInHalf: {"precision/float16"},
    StateInFloat32: {"precision/float64-is-not-rounded"},
    SquaresComplex: {"precision/complex-numbers"},
    HidesNan: {"precision/nan-is-guarded-or-seen"},
    WantsRows: {"precision/scalars"},
    MeansOverNothing: {"precision/empty"},
    WalksAlongTheMemory: {"precision/not-contiguous"},
    ReadsTheNorm: {"speed/reads-nothing", "speed/works-without-values"},
    StateOnTheCpu: {"speed/works-without-values"},
    Hoards: {"speed/keeps-nothing"},
    BakesItsRateIn: {"speed/compiles-right"},
    CountsInPython: {"speed/compiles-once"},
    FollowsItsOwnLoss: set(),  # in one process
    TakesDuplicates: {"contract/a-parameter-listed-twice"},
    WantsPythonsNumbers: {"contract/numpy-numbers"},
    LoadsText: {"state/garbage-refused"},
    LoadsOtherSizes: {"state/other-sizes-refused"},
    LooksTooLate: {"state/a-refused-load-changes-nothing"},
    KeepsPlaces: {"state/in-another-order"},
    TakesTheRoot: {"run/a-negative-lr-in-mid-run"},
    FoldsTheRateIn: {"run/a-nan-lr-in-mid-run", "precision/nan-is-guarded-or-seen"},
    SkipsSubclasses: {"precision/tensor-subclass"},
    CountsBackwards: {"run/accumulation", "run/grad-scaler-skips"},
    HasModes: set(),
    Slow: set(),
    StartsLate: set(),
    Throws: set(),
}
"""Classes, and which promises of one process each breaks."""

EXCUSED = {
    "lodo": {
        "groups/two-alike-are-one",  # by design: every group has networks of its own
    }
}
"""What ours do not keep."""

TORCHS = {
    "sgd": {"contract/nan-lr-refused", "state/garbage-refused"},
    "adamw": {
        "state/a-load-shares-nothing",
        "state/other-sizes-refused",
        "state/garbage-refused",
        "state/a-refused-load-changes-nothing",
        "speed/reads-nothing",
    },
}
"""What torch's do not keep, in one process."""


def broken(name: str, promises: Any = ALONE) -> set[str]:
    """Which promises an optimizer breaks, tried in this process."""
    subject = get_subject(name, {})
    return {one.path for one in promises if attempt(one, subject).broken}


def mutant(kind: type) -> str:
    """How a class of this file is named to the tool."""
    return f"{HERE}:{kind.__name__}"


# -- the promises themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROMISES)
def test_a_promise_is_ten_lines_and_two_sentences(path: str) -> None:
    one = PROMISES[path]
    assert 1 <= len([line for line in one.text.splitlines() if line.strip()]) <= LINES
    assert one.says
    assert one.why.endswith(".")
    for name in one.uses:
        assert re.search(rf"\b{name}\b", one.text), f"{name} is not used"


def test_there_are_promises_of_every_kind() -> None:
    assert len(GROUPS) == 9
    assert len(PROMISES) >= 60
    assert sum(map(len, GROUPS.values())) == len(PROMISES), "two have the same name"


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_every_promise(name: str) -> None:
    assert broken(name) == EXCUSED.get(name, set())


def test_ours_keep_every_promise_with_compiled_kernels_too() -> None:
    subject = get_subject("koala-m", {"fused": True})
    assert [one for promise in ALONE if (one := attempt(promise, subject)).broken] == []


@pytest.mark.parametrize("name", TORCHS)
def test_what_torch_s_own_break(name: str) -> None:
    assert broken(name) == TORCHS[name]


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
def test_each_promise_is_broken_by_the_class_that_it_was_written_against(kind: type[Sound]) -> None:
    compiled = kind is Sound or MUTANTS[kind] & COMPILED  # to compile takes half of the time, and says little of others
    promises = [one for one in ALONE if compiled or one.path not in COMPILED]
    assert broken(f"{__name__}:{kind.__name__}", promises) == MUTANTS[kind]


def test_a_refusal_is_what_somebody_wrote() -> None:
    for kind, outcome in ((Sound, Outcome.refused), (DropsSparse, Outcome.fails)):
        verdict = attempt(PROMISES["gradients/sparse"], get_subject(mutant(kind), {}))
        assert verdict.outcome is outcome
    muon = get_subject("muon", {})
    assert attempt(PROMISES["precision/scalars"], muon).outcome is Outcome.refused
    assert attempt(PROMISES["run/maximize"], muon).outcome is Outcome.absent
    accident = attempt(PROMISES["gradients/sparse"], get_subject(mutant(SparseByAccident), {}))
    assert "sparse" in accident.reason.lower(), "an operator of torch's says the word too"
    assert accident.outcome is Outcome.fails


class SparseByAccident(Sound):
    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.write(p, g.view(-1).view(p.shape))


class NoSparseGradients(Exception):
    """An exception of an optimizer's own."""


class Refuses(Sound):
    """It refuses sparse gradients by the error that its argument says."""

    def __init__(self, params: Any, lr: Any = 0.1, how: str = "", always: bool = False) -> None:
        super().__init__(params, lr)
        self.defaults["how"], self.always = how, always

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if g.is_sparse or self.always:
            errors = {
                "own": NoSparseGradients(),
                "only": RuntimeError("only supported for dense gradients"),
                "unfinished": NotImplementedError(),
                "silent": RuntimeError(),
                "key": KeyError("no key for a sparse gradient"),
                "attribute": AttributeError("a sparse gradient has no such attribute"),
            }
            assert self.defaults["how"] in errors
            raise errors[self.defaults["how"]]
        super().move(p, g, group)


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("own", Outcome.refused),
        ("only", Outcome.refused),
        ("unfinished", Outcome.refused),
        ("an assertion", Outcome.refused),
        ("silent", Outcome.fails),
        ("key", Outcome.fails),
        ("attribute", Outcome.fails),
    ],
)
def test_a_refusal_is_known_by_who_wrote_it_and_not_by_its_words(how: str, outcome: Outcome) -> None:
    promise = PROMISES["gradients/sparse"]
    assert attempt(promise, get_subject(mutant(Refuses), {"how": how})).outcome is outcome
    assert attempt(promise, get_subject(mutant(Refuses), {"how": how, "always": True})).outcome is Outcome.fails


def test_an_exception_of_the_optimizers_own_refuses_a_setting_too() -> None:
    for path in ("contract/negative-lr-refused", "contract/no-parameters-refused"):
        verdict = attempt(PROMISES[path], get_subject(mutant(OwnErrors), {}))
        assert (verdict.outcome, verdict.reason) == (Outcome.holds, "")


class OwnErrors(Sound):
    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        params = list(params)
        assert params, "there is nothing to optimize"
        if lr < 0:
            raise NoSparseGradients(f"lr={lr}")
        super().__init__(params, lr)


def test_what_an_error_says_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "__repr__", lambda _: "x")
    verdict = attempt(PROMISES["run/quiet"], get_subject(mutant(Chatters), {}))
    assert verdict.broken
    assert len(verdict.reason) == 300


class Chatters(Sound):
    def write(self, p: Tensor, update: Tensor) -> None:
        print("y" * 100_000)


# -- reproductions ------------------------------------------------------------------------------------------------


def test_a_reproduction_runs_alone_and_fails_alone(tmp_path: Path) -> None:
    promise, subject = PROMISES["precision/nan-is-guarded-or-seen"], get_subject(mutant(HidesNan), {"lr": 0.05})
    verdict, file = attempt(promise, subject), tmp_path / "reproduction.py"
    file.write_text(program(promise, subject))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path, env=elsewhere())
    assert verdict.broken
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"AssertionError: {verdict.reason}"
    assert "settings = dict(lr=0.05)" in file.read_text()


def elsewhere() -> dict[str, str]:
    """The environment of a process that is to find fallline, and this file's folder by itself."""
    return {**os.environ, "PYTHONPATH": str(HERE.parents[3] / "src") + os.pathsep + str(HERE.parent)}


@pytest.mark.parametrize("loss", Loss)
def test_a_program_gives_the_loss_as_it_is_asked_to(loss: Loss) -> None:
    subject = get_subject("lbfgs" if loss is Loss.closure else "koala-v" if loss != "none" else "sgd", {}, loss)
    for path in ("learns/in-float32", "gradients/never-written"):
        assert attempt(PROMISES[path], subject).outcome is Outcome.holds
    assert attempt(PROMISES["run/grad-scaler"], subject).outcome is (
        Outcome.absent if loss is Loss.closure else Outcome.holds
    )


# -- processes ----------------------------------------------------------------------------------------------------


def test_one_of_ours_keeps_its_promises_over_two_processes() -> None:
    verdicts = check(get_subject("koala-m", {}), GROUPS["processes"])
    assert [one.outcome for one in verdicts] == [Outcome.holds] * len(verdicts), verdicts


def test_a_loss_that_is_not_averaged_is_seen_over_two_processes() -> None:
    promise = PROMISES["processes/ranks-alike"]
    (verdict,) = check(get_subject(mutant(FollowsItsOwnLoss), {}), [promise])
    assert verdict.broken
    assert verdict.reason == "the two processes have other weights"


def test_a_crash_a_hang_and_an_exit_are_failures_of_the_optimizer_alone() -> None:
    heard: list[Verdict] = []
    names = ["contract/negative-lr-refused", "state/resumes", "state/deepcopies", "state/keys-are-parameters"]
    promises = [PROMISES[name] for name in names]
    excuses = {names[0]: "it says so", names[3]: "not needed"}
    verdicts = check(get_subject(mutant(Collapses), {}), promises, excuses, Limits(seconds=10), on_verdict=heard.append)
    exits, crashes, hangs, holds = verdicts
    assert (exits.outcome, exits.reason) == (Outcome.excused, "it says so")
    assert crashes.reason == "its process was ended by SIGSEGV"
    assert hangs.reason.startswith("it had not ended after")
    assert [one.outcome for one in verdicts[1:]] == [Outcome.fails, Outcome.fails, Outcome.holds]
    assert heard == verdicts
    assert holds.promise == names[3]


class Rampant(Sound):
    """It takes whatever there is, each time in another way; what it starts ends by itself after a minute."""

    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        if lr < 0:
            for _ in range(30):
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            time.sleep(60)
        if lr != lr:
            os.kill(os.getppid(), signal.SIGKILL)
        super().__init__(params, lr)

    def state_dict(self) -> Any:
        taken = []
        while len(taken) < 400:  # 6 GiB
            taken.append(torch.ones(2**22))
            time.sleep(0.001)
        time.sleep(60)

    def __deepcopy__(self, memo: Any) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            print("z" * 100_000)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave a process that has left the group, and one that goes on with the programs."""
        if not set_to_none and os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                file = Path(os.environ["LEFT_BEHIND"])
                file.with_suffix(".part").write_text(str(os.getpid()))
                file.with_suffix(".part").rename(file)
                time.sleep(60)
            os._exit(0)
        super().zero_grad(set_to_none)
        if not set_to_none:
            while not Path(os.environ["LEFT_BEHIND"]).exists():
                time.sleep(0.01)
            os.fork()

    def add_param_group(self, param_group: Any) -> None:
        super().add_param_group(param_group)
        if len(self.param_groups) == 2:
            os.closerange(0, 200)


@pytest.mark.skipif(not watched(), reason="there is no /proc")
def test_an_optimizer_without_bounds_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEFT_BEHIND", str(tmp_path / "left"))
    names = {
        "contract/negative-lr-refused": r"it was ended when it had \d+ processes, more than 20",
        "contract/nan-lr-refused": "it ended the process that had started it",
        "state/hooks": r"it was ended when it took [\d.]+ GiB of memory, more than 2",
        "state/deepcopies": "it was ended when it had printed more than 1 MiB",
        "contract/lr-in-every-group": "its process ended with status 1",
        "gradients/zero-grad": "",
    }
    limits = Limits(seconds=30, memory=2.0, processes=20, output=2**20)
    verdicts = check(get_subject(mutant(Rampant), {}), [PROMISES[name] for name in names], limits=limits)
    for verdict, reason in zip(verdicts, names.values(), strict=True):
        assert verdict.broken == bool(reason), verdict
        assert re.fullmatch(reason, verdict.reason), verdict
    left = int((tmp_path / "left").read_text())
    assert status(left)[0] in ("", "Z", "X"), "what had left the process group is still there"


def test_an_optimizer_that_cannot_be_made_within_its_limits_is_refused_by_the_limit() -> None:
    with pytest.raises(ValueError, match="cannot be made: it had not ended after 1 seconds"):
        described(mutant(NeverMade), {}, None, Limits(seconds=1))
    with pytest.raises(ValueError, match="cannot be made with these settings"):
        described(mutant(Sound), {"rate": 1}, None, Limits())


class NeverMade(Sound):
    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        time.sleep(60)


def test_a_stranger_is_described_elsewhere_as_here() -> None:
    settings = {"lr": 0.5, "momentum": 0.25}
    assert described(mutant(HasModes), settings, Loss.none, Limits()) == get_subject(mutant(HasModes), settings)


# -- the command --------------------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    """The command as it is typed."""
    from typer.testing import CliRunner  # here, since the processes of the tool import this file too

    from fallline.bench.cli.root import app

    return CliRunner().invoke(app, ["check", *words])


def test_the_command_prints_what_holds_and_how_what_fails_is_reproduced(tmp_path: Path) -> None:
    written = tmp_path / "verdicts.json"
    name = mutant(TakesNegativeRates)
    done = run(name, "--only", "contract", "--set", "momentum=0.5", "--json", str(written))
    assert done.exit_code == 1, done.output
    said = json.loads(written.read_text())["optimizers"][0]
    outcomes = {one["promise"]: one["outcome"] for one in said["verdicts"]}
    assert list(outcomes) == [one.path for one in GROUPS["contract"]]
    assert [path for path, outcome in outcomes.items() if outcome == "fails"] == ["contract/negative-lr-refused"]
    subject = get_subject(name, {"momentum": 0.5})
    assert program(PROMISES["contract/negative-lr-refused"], subject) in done.stdout
    assert "11 promises: 10 kept, 1 broken." in done.stdout


def test_what_is_excused_does_not_fail_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(subject: Any, promises: Any, excuses: Any, limits: Limits, heard: Any) -> list[Verdict]:
        heard(excused := Verdict(promises[0].path, Outcome.excused, excuses[promises[0].path]))
        return [excused]

    monkeypatch.setattr("fallline.bench.cli.check.run_check", here)
    path = "contract/negative-lr-refused"
    done = run(mutant(TakesNegativeRates), "sgd", "--only", path, "--excuse", f"{path}=it is abs(lr)", "--markdown")
    assert done.exit_code == 0, done.output
    table = [
        "| promise | TakesNegativeRates | torch's SGD |",
        "| --- | --- | --- |",
        f"| `{path}` | excused | excused |",
    ]
    assert done.stdout.splitlines()[:3] == table
    assert f"- TakesNegativeRates, `{path}` (excused): it is abs(lr)" in done.stdout


def test_the_command_lists_every_promise() -> None:
    done = run("--list")
    assert done.exit_code == 0
    assert re.findall(r"^(\w+/[\w-]+)", done.stdout, re.MULTILINE) == list(PROMISES)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name an optimizer"),
        (("koala",), "did you mean"),
        (("torch.optim:Nothing",), "no class 'Nothing'"),
        (("nothing_there:Nothing",), "cannot be imported"),
        (("nothing.py",), "there is no file nothing.py"),
        (("sgd", "--set", "lr"), "write name=value"),
        (("sgd", "--set", "rate=1"), "unexpected keyword argument"),
        (("sgd", "--only", "stat"), "did you mean state"),
        (("sgd", "--excuse", "state/resumes"), "say why"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(words: tuple[str, ...], told: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert told in " ".join(done.output.replace("│", " ").split())


def test_settings_are_python_s_literals_or_text() -> None:
    asked = ["lr=0.1", "betas=(0.9, 0.99)", "fused=True", "scope=tensor", "r=None", "note=a=b"]
    wanted = {"lr": 0.1, "betas": (0.9, 0.99), "fused": True, "scope": "tensor", "r": None, "note": "a=b"}
    assert parse_settings(asked) == wanted
    asked = ["a=false", "b=TRUE", "c=inf", "d=1e-3", "e=+.5", "f=", "g=((((", "h={[]:1}"]
    wanted = {"a": False, "b": True, "c": math.inf, "d": 1e-3, "e": 0.5, "f": "", "g": "((((", "h": "{[]:1}"}
    assert parse_settings(asked) == wanted
    settings = parse_settings(["curvature_floor=-inf", "solver=bisect"])
    assert "dict(curvature_floor=float('-inf'), solver='bisect')" in get_subject("arturo", settings).header("", ())
    with pytest.raises(ValueError, match="lr is given twice"):
        parse_settings(["lr=0.1", "lr=0.1"])
    assert (
        get_subject("adamw", {"betas": (0.9, 0.99)})
        .header("", ())
        .startswith("import torch\nfrom torch.optim import AdamW as Optimizer\n\nsettings = dict(betas=(0.9, 0.99))\n")
    )


def test_how_a_class_is_told_the_loss_is_seen_from_its_step() -> None:
    told = {name: get_subject(name, {}).loss for name in ("sgd", "lbfgs", "koala-m", mutant(FollowsItsOwnLoss))}
    assert list(told.values()) == ["none", "closure", "examples", "argument"]


# -- the page -----------------------------------------------------------------------------------------------------


def between(place: str) -> str:
    """What stands on the page between two comments."""
    found = re.search(rf"<!-- {place} -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1].strip()


def test_the_page_explains_every_promise() -> None:
    assert between("promises") == show.promises_markdown(list(PROMISES.values()))


def test_the_table_on_the_page_is_of_every_promise_and_says_what_the_tests_here_find() -> None:
    head, _, *body = (line.strip("| ").split(" | ") for line in between("results").splitlines() if line[:1] == "|")
    columns = dict(zip(head, zip(*body, strict=True), strict=True))
    paths = [cell.strip("`") for cell in columns["promise"][:-1]]
    assert paths == list(PROMISES)
    names = {"torch's SGD": TORCHS["sgd"], "torch's AdamW": TORCHS["adamw"]}
    names |= {type(fallline.create_optimizer(one, [torch.ones(2, 2)])).__name__: set() for one in OURS}
    for name, wanted in names.items():
        assert {path for path, cell in zip(paths, columns[name], strict=False) if cell == "**✗**"} == wanted, name
    excused = {path for path, cell in zip(paths, columns["LODO"], strict=False) if cell == "excused"}
    assert excused == EXCUSED["lodo"]
