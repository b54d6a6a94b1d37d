"""A small problem for the KOALAs: regression by a network of four blocks, another batch at every step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fallline import KOALA, MomentumKOALA, VanillaKOALA
from reference import koala as reference

METHODS = {"V": VanillaKOALA, "M": MomentumKOALA}
SCALARS = {"V": ["covariance", "measurement_noise"], "M": ["p11", "p12", "p22", "measurement_noise", "process_noise"]}

Blocks = list[list[float]]


def vector(values: list[float]) -> Tensor:
    """A float64 tensor; `torch.tensor(values)` alone would round to float32 on the way."""
    return torch.tensor(values, dtype=torch.float64)


SHAPES = [(3, 2), (3,), (1, 3), ()]


def start(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Weights and biases of the network 2-3-1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in SHAPES]


def batch_losses(parameters: list[Tensor], t: int, examples: slice = slice(None)) -> Tensor:
    """Losses of the 8 examples of batch t, one each."""
    w1, b1, w2, b2 = parameters
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(100 + t), dtype=torch.float64).to(w1.dtype)
    y = torch.sin(x[:, 0]) - x[:, 1]
    output = torch.tanh(x @ w1.T + b1) @ w2.T
    return ((output[:, 0] + b2 - y) ** 2 / 2)[examples]


def backward(optimizer: KOALA, parameters: list[Tensor], t: int) -> Tensor:
    """Gradients of the mean loss of batch t; returns the losses."""
    optimizer.zero_grad()
    losses = batch_losses(parameters, t)
    losses.mean().backward()
    return losses.detach()


def at(blocks: Blocks, t: int) -> tuple[float, list[list[float]], float]:
    """Mean loss of batch t, its gradient and the mean squared loss, for a reference."""
    tensors = [vector(b).view(s).requires_grad_() for b, s in zip(blocks, SHAPES, strict=True)]
    losses = batch_losses(tensors, t)
    gradients = torch.autograd.grad(losses.mean(), tensors)
    return losses.mean().item(), lists(gradients), losses.square().mean().item()


def lists(tensors: Any) -> Blocks:
    """Each tensor as a flat list."""
    return [t.detach().flatten().tolist() for t in tensors]


def scalars(optimizer: KOALA) -> dict[str, float]:
    """The shared scalars of a KOALA-V or -M."""
    names = SCALARS["M" if isinstance(optimizer, MomentumKOALA) else "V"]
    return {name: float(optimizer.param_groups[0][name]) for name in names}


def reference_scalars(plain: reference.Koala) -> dict[str, float]:
    """The same of a reference."""
    if isinstance(plain, reference.Momentum):
        (p11, p12), (p21, p22) = plain.P
        assert p12 == pytest.approx(p21, rel=1e-14)
        return {"p11": p11, "p12": p12, "p22": p22, "measurement_noise": plain.R, "process_noise": plain.qx}
    return {"covariance": plain.P[0][0], "measurement_noise": plain.R}


def assert_same(optimizer: KOALA, parameters: list[Tensor], plain: reference.Koala, rel: float = 1e-9) -> None:
    """Parameters and shared scalars are those of the reference."""
    for mine, wanted in zip(lists(parameters), plain.blocks, strict=True):
        assert mine == pytest.approx(wanted, rel=rel, abs=1e-12)
    assert scalars(optimizer) == pytest.approx(reference_scalars(plain), rel=rel, abs=1e-15)


def snapshot(optimizer: KOALA, parameters: list[Tensor]) -> list[Tensor]:
    """Every number that a step may change, but the count of skipped steps."""
    groups = [v for g in optimizer.param_groups for k, v in g.items() if isinstance(v, Tensor) and k != "skipped"]
    state = [v for p in parameters for v in optimizer.state[p].values()]
    return [t.detach().clone() for t in [*parameters, *groups, *state]]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    """Bit for bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


class Net(nn.Module):
    """The small problem as a module; `form` says in which way its output holds the losses."""

    def __init__(self, form: str = "plain", parameters: list[Tensor] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(p.detach()) for p in parameters or start()])
        self.form = form

    def forward(self, t: int, examples: slice = slice(None)) -> Any:
        losses = batch_losses(list(self.blocks), t, examples)
        if self.form == "dict":
            return {"loss": losses, "logits": losses * 2}
        if self.form == "attribute":
            return Output(losses)
        if self.form == "mean":
            return losses.mean()
        if self.form == "tuple":
            return losses * 2, losses
        return losses


class Output:
    """What transformers' models return, as far as it matters here."""

    def __init__(self, loss: Tensor) -> None:
        self.loss, self.logits = loss, loss * 2
