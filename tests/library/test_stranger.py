"""An optimizer of a stranger's works as ours do, or is refused in a sentence: nothing fails in silence.

Lion, Adan and AdaGrad-Norm, each a file of its own, are written as docs/tutorial-new-optimizer.md says.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adagrad_norm import AdaGradNorm
from adan import Adan
from lion import Lion
from torch import Tensor, nn
from vocabulary import WORDS, spoken

import fallline
from fallline._engine.run import BLOCK, run, stochastically
from fallline._engine.tape import KNOWN, Column, record
from fallline.kernels import scalar_like, squared_norms

HERE = Path(__file__).parents[1] / "helpers"
F64 = torch.float64
STRANGERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lion": (Lion, {"lr": 0.02, "weight_decay": 0.1}),
    "adan": (Adan, {"lr": 0.02, "weight_decay": 0.1}),
    "adagrad_norm": (AdaGradNorm, {"lr": 0.5}),
}
every_stranger = pytest.mark.parametrize("name", STRANGERS)


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=F64).to(dtype)) for s in ((40, 3), (17,), ())]


def grads(ps: list[nn.Parameter], t: int) -> None:
    for i, p in enumerate(ps):
        generator = torch.Generator().manual_seed(10 * t + i)
        p.grad = torch.randn(p.shape, generator=generator, dtype=F64).to(p.dtype)


def trained(name: str, dtype: torch.dtype, steps: int = 10, **more: Any) -> list[Tensor]:
    cls, settings = STRANGERS[name]
    ps = parameters(dtype)
    optimizer = cls(ps, **settings, **more)
    for t in range(steps):
        grads(ps, t)
        optimizer.step()
    return [p.detach() for p in ps]


# -- three methods ---------------------------------------------------------------------------------------------------


def lion(p: Tensor, gs: list[Tensor]) -> Tensor:
    """Algorithm 2 of arXiv 2302.06675."""
    m = 0 * p
    for g in gs:
        c = 0.9 * m + 0.1 * g
        p = p - 0.02 * (torch.sign(c) + 0.1 * p)
        m = 0.99 * m + 0.01 * g
    return p


def adan(p: Tensor, gs: list[Tensor]) -> Tensor:
    """Algorithm 1 of arXiv 2208.06677, with the corrections of the authors' program."""
    b1, b2, b3 = 0.02, 0.08, 0.01
    m, v, n = 0 * p, 0 * p, 0 * p
    for k, g in enumerate(gs, 1):
        difference = g - gs[max(k - 2, 0)]
        m = (1 - b1) * m + b1 * g
        v = (1 - b2) * v + b2 * difference
        n = (1 - b3) * n + b3 * (g + (1 - b2) * difference) ** 2
        mean, change, square = m / (1 - (1 - b1) ** k), v / (1 - (1 - b2) ** k), n / (1 - (1 - b3) ** k)
        p = (p - 0.02 * (mean + (1 - b2) * change) / (square.sqrt() + 1e-8)) / (1 + 0.02 * 0.1)
    return p


def adagrad_norm(p: Tensor, gs: list[Tensor]) -> Tensor:
    total = 0.0
    for g in gs:
        total += float((g**2).sum())
        p = p - 0.5 * g / (total + 1e-10) ** 0.5
    return p


REFERENCES = {"lion": lion, "adan": adan, "adagrad_norm": adagrad_norm}


@pytest.mark.parametrize("fused", [False, True])
@every_stranger
def test_a_stranger_follows_its_paper(name: str, fused: bool) -> None:
    ps, gs = parameters(F64), []
    for t in range(10):
        grads(ps, t)
        gs.append([p.grad for p in ps])
    for p, mine, *own in zip(ps, trained(name, F64, fused=fused), *gs, strict=True):
        torch.testing.assert_close(mine, REFERENCES[name](p.detach(), own), rtol=1e-12, atol=1e-12)


@every_stranger
def test_fused_is_eager(name: str) -> None:
    for eager, fused in zip(trained(name, torch.float32), trained(name, torch.float32, fused=True), strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-6, atol=1e-6)
    ends = [torch.cat([p.flatten() for p in trained(name, torch.bfloat16, fused=fused)]) for fused in (False, True)]
    torch.testing.assert_close(*ends, rtol=2**-7, atol=1e-3)


@every_stranger
def test_bfloat16_is_float32_rounded_once_a_step(name: str) -> None:
    cls, settings = STRANGERS[name]
    for rounded in (False, True):
        ps = parameters(torch.bfloat16)
        wide = [nn.Parameter(p.detach().float()) for p in ps]
        low, high = cls(ps, **settings, stochastic_rounding=rounded), cls(wide, **settings)
        for t in range(4):
            grads(ps, t)
            for q, p in zip(wide, ps, strict=True):
                q.data.copy_(p)
                q.grad = p.grad.float()
            low.step()
            high.step()
            for q, p in zip(wide, ps, strict=True):
                wanted = stochastically(q.detach(), torch.tensor(t + 1)) if rounded else q.bfloat16()
                assert torch.equal(p, wanted)


@every_stranger
def test_a_step_with_a_nan_changes_nothing(name: str) -> None:
    cls, settings = STRANGERS[name]
    for fused in (False, True):
        for first in (True, False):
            ps = parameters(torch.float32)
            optimizer = cls(ps, **settings, skip_nonfinite=True, fused=fused)
            if not first:
                grads(ps, 0)
                optimizer.step()
            before = copy.deepcopy((ps, [optimizer.state[p] for p in ps]))
            grads(ps, 1)
            ps[1].grad[3] = torch.nan
            optimizer.step()
            assert all(torch.equal(p, old) for p, old in zip(ps, before[0], strict=True))
            for p, old in zip(ps, before[1], strict=True):
                assert all(torch.equal(value, old[key]) for key, value in optimizer.state[p].items())
            assert optimizer.skipped.item() == 1


@every_stranger
def test_a_stranger_keeps_what_fallline_check_asks_for(name: str) -> None:
    """All promises of one process, but those of torch.compile, which take seconds; `fallline check` has the rest."""
    pytest.importorskip("typer")
    from fallline.bench.check.promises import PROMISES
    from fallline.bench.check.subject import get_subject
    from fallline.bench.check.trial import Outcome, attempt

    subject = get_subject(str(HERE / f"{name}.py"), {})
    asked = [path for path in PROMISES if not path.startswith(("processes/", "speed/compiles"))]
    verdicts = {path: attempt(PROMISES[path], subject) for path in asked}
    assert len(verdicts) > 50
    assert {path: one.reason for path, one in verdicts.items() if one.broken} == {}
    assert {path for path, one in verdicts.items() if one.outcome is Outcome.refused} == {
        "gradients/sparse",
        "run/a-negative-lr-in-mid-run",
    }


@every_stranger
def test_a_file_is_under_sixty_lines(name: str) -> None:
    assert len((HERE / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


# -- what a stranger may do, and what is refused ---------------------------------------------------------------------


def descend(p: Tensor, g: Tensor, *, lr: Any) -> None:
    p.sub_(lr * g)


def descend_by_average(p: Tensor, g: Tensor, m: Tensor, *, lr: Any) -> None:
    m.mul_(0.9).add_(g)
    p.sub_(lr * m)


def made(
    kernel: Callable[..., Any],
    state: Callable[[Tensor], dict[str, Any]] = lambda p: {},
    shared: dict[str, Any] | None = None,
    **settings: Any,
) -> type[fallline.Optimizer]:
    class Mine(fallline.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1, **run: Any) -> None:
            super().__init__(params, dict(lr=lr, **settings), **run)

        def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            return state(p)

        def init_shared(self) -> dict[str, Any]:
            return shared or {}

        def advance(self, groups: list[Any], shared: Any, loss: Any) -> None:
            for t in groups:
                self.each(kernel, t, t.grads, *[getattr(t, name) for name in t.lists], lr=t.lr)

    return Mine


def stepped(cls: Any, dtype: torch.dtype = torch.float32, n: int = 3, **run: Any) -> Tensor:
    p = nn.Parameter(torch.ones(n, dtype=dtype))
    optimizer = cls([p], **run)
    for _ in range(2):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("fused", [False, True])
def test_what_a_stranger_may_do(fused: bool) -> None:
    """State of the parameter's own precision; a kernel of any name; a copy of the weights; shared scalars alone."""
    average = made(descend_by_average, lambda p: {"m": torch.zeros_like(p)})
    assert stepped(average, torch.bfloat16, fused=fused)[0] == torch.tensor(1 - 0.05 - 0.095).bfloat16()
    assert stepped(made(descend), torch.bfloat16, fused=fused)[0] == torch.tensor(0.9).bfloat16()
    copied = made(lambda p, g, anchor, *, lr: None, lambda p: {"anchor": p.clone()})
    optimizer = copied([nn.Parameter(torch.ones(2))])
    assert not copy.deepcopy(optimizer).state_dict()["state"][0]["anchor"].requires_grad
    counted = made(descend, shared={"count": 1.0})([p := nn.Parameter(torch.ones(2))], fused=fused)
    p.grad = torch.ones(2)
    counted.step()
    assert counted.param_groups[0]["count"].item() == 1.0
    assert counted.skipped.item() == 0


class WithoutDefaults(fallline.Optimizer):
    """No constructor: what is run, and how, has the base's values."""

    def advance(self, groups: list[Any], shared: Any, loss: Any) -> None:
        for t in groups:
            self.each(descend, t, t.grads, lr=0.1)


def test_run_settings_need_not_be_among_the_defaults() -> None:
    for run_settings in ({}, {"maximize": True}, {"fused": True}, {"stochastic_rounding": True}):
        moved = stepped(WithoutDefaults, defaults={}, **run_settings)
        assert moved[0].item() == pytest.approx(1.1 if "maximize" in run_settings else 0.9)
    assert stepped(WithoutDefaults, defaults={"lr": 0.1, "maximize": True})[0].item() == pytest.approx(1.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'fast'"):
        WithoutDefaults([nn.Parameter(torch.ones(1))], {}, fast=True)  # type: ignore[call-arg]


def zeros(name: str) -> Callable[[Tensor], dict[str, Any]]:
    return lambda p: {name: torch.zeros_like(p)}


NAMES: dict[str, tuple[type[fallline.Optimizer], str]] = {
    "state lr": (made(descend_by_average, zeros("lr")), "a state named 'lr', and that is the name of a setting"),
    "state grads": (made(descend_by_average, zeros("grads")), "a state named 'grads'.* of what every group has"),
    "state and shared": (made(descend_by_average, zeros("m"), {"m": 0.0}), "a state named 'm'.* of a shared scalar"),
    "shared lr": (made(descend, shared={"lr": 0.0}), "a shared scalar named 'lr'.* of a setting"),
    "setting index": (made(descend, index=3), "a setting named 'index'.* of what every group has"),
    "setting skipped": (made(descend, skipped=3), "a shared scalar named 'skipped'.* of a setting"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_one_name_for_two_things_is_refused_at_once(kind: str) -> None:
    cls, words = NAMES[kind]
    with pytest.raises(ValueError, match=f"^Mine has {words}.*: rename one of the two$"):
        cls([nn.Parameter(torch.ones(2))])


def test_state_that_is_no_tensor_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"^Mine.init_state returns steps as a int: state is tensors; .*scalar_like"):
        made(descend_by_average, lambda p: {"steps": 0})([nn.Parameter(torch.ones(2))])


def test_a_method_that_ignores_skip_nonfinite_is_refused() -> None:
    cls = made(descend)
    assert stepped(cls)[0].item() == pytest.approx(0.9)
    with pytest.raises(RuntimeError, match=r"^Mine was made with skip_nonfinite=True and skips no step"):
        stepped(cls, skip_nonfinite=True)
    for name in STRANGERS:
        trained(name, torch.float32, 1, skip_nonfinite=True)


def test_a_method_without_a_step_is_refused() -> None:
    class Idle(fallline.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

    with pytest.raises(NotImplementedError, match=r"^Idle has no advance\(groups, shared, loss\)"):
        stepped(Idle)


def functional(p: Tensor, g: Tensor, *, lr: Any) -> Any:
    return p - lr * g


def functional_in_a_tuple(p: Tensor, g: Tensor, *, lr: Any) -> Any:
    return (p - lr * g,)


def through_data_(p: Tensor, g: Tensor, *, lr: Any) -> None:
    p.data.sub_(lr * g)


def test_a_kernel_that_writes_nothing_is_refused() -> None:
    for fused in (False, True):
        with pytest.raises(NotImplementedError, match=r"^functional returns a Tensor: a kernel writes .* in place"):
            stepped(made(functional), fused=fused)
        with pytest.raises(NotImplementedError, match=r"^functional_in_a_tuple returns a value for each element"):
            stepped(made(functional_in_a_tuple), fused=fused)
        with pytest.raises(RuntimeError, match=r"^through_data_.* \.?data"):
            stepped(made(through_data_), torch.bfloat16, fused=fused)

    class Summing(made(descend)):  # type: ignore[misc]
        def advance(self, groups: list[Any], shared: Any, loss: Any) -> None:
            self.sums(descend, groups[0], groups[0].grads, lr=0.1)

    with pytest.raises(RuntimeError, match=r"^sums\(\) needs a kernel that returns a tuple of sums: descend returns"):
        stepped(Summing)


def branch_(p: Tensor, g: Tensor, *, lr: Any) -> None:
    if g.sum() > 1:
        p.sub_(lr * g)


def part_(p: Tensor, g: Tensor, *, lr: Any) -> None:
    p[:] = p - lr * g


CLOSED = torch.ones(3)
HOST: dict[str, Callable[..., Any]] = {
    "__bool__": branch_,
    "__setitem__": part_,
    "numel": lambda p, g, *, lr: (p.sub_(lr * g / p.numel()), None)[1],
    "shape": lambda p, g, *, lr: (p.sub_(lr * g / p.shape[0]), None)[1],
    "item": lambda p, g, *, lr: (p.sub_(lr * g.sum().item()), None)[1],
    "__float__": lambda p, g, *, lr: (p.sub_(g * float(g.sum())), None)[1],
}


@pytest.mark.parametrize("word", HOST)
def test_what_a_fused_kernel_cannot_ask_a_tensor_is_refused(word: str) -> None:
    """Once it was traced with the size and the value of the trial, for all tensors."""
    with pytest.raises(NotImplementedError, match=rf"{word} is not in the vocabulary.* sees one element at a time"):
        stepped(made(HOST[word]), fused=True)
    stepped(made(HOST[word]))
    with pytest.raises(NotImplementedError, match="uses a tensor that it was not given"):
        stepped(made(lambda p, g, *, lr: (p.sub_(g * CLOSED), None)[1]), fused=True)


def test_an_operation_that_fused_kernels_lack_is_refused_with_those_they_have() -> None:
    cls = made(lambda p, g, *, lr: (p.sub_(lr * g.erf()), None)[1])
    with pytest.raises(NotImplementedError, match=r"erf .*not in the vocabulary.* abs, .* sign, .*fused=False$"):
        stepped(cls, fused=True)
    stepped(cls)


def by_norm_(p: Tensor, g: Tensor, *, lr: Any) -> None:
    p.sub_(lr * g / g.norm())


def test_a_kernel_that_takes_a_norm_is_not_cut_into_pieces() -> None:
    n = 2 * BLOCK + 5
    moved = stepped(made(by_norm_), n=n)
    torch.testing.assert_close(moved, torch.full((n,), 1 - 0.2 / n**0.5), rtol=1e-6, atol=0)


# -- the vocabulary --------------------------------------------------------------------------------------------------


def test_the_words_that_the_refusal_lists_are_those_there_are() -> None:
    listed = re.sub(r"\(.*?\)", "", KNOWN).replace("comparisons", " comparisons ").replace(",", " ").split()
    assert sorted(listed) == sorted(WORDS)
    for dtype, rtol in ((torch.float32, 1e-4), (F64, 1e-12)):
        ps = [torch.randn(31, dtype=dtype), torch.randn(4, 5, dtype=dtype)]
        gs = [torch.rand_like(p) for p in ps]
        eager, fused = (run(spoken, [ps, gs], {}, fused) for fused in (False, True))
        assert eager is not None
        assert fused is not None
        for i, word in enumerate([*WORDS, "dot", "norm", "amax", "largest"]):
            torch.testing.assert_close(fused[:, i], eager[:, i].double(), rtol=rtol, atol=rtol, msg=word)
    record(squared_norms, [Column(F64, True)] * 2, {})


def test_a_number_of_each_tensor_is_real_and_of_its_states_precision() -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.complex64, torch.float32), (F64, F64)):
        number = scalar_like(torch.ones(3, dtype=dtype))
        assert (number.dtype, number.shape) == (wanted, ())
