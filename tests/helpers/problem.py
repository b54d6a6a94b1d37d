"""A small problem for the KOALAs: regression by a network of four blocks, another batch at every step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fallline import KOALA, KOALAPlusPlus, MomentumKOALA, VanillaKOALA
from reference import koala as reference
from reference.koala_pp import PlusPlus

METHODS: dict[str, type[KOALA]] = {"V": VanillaKOALA, "M": MomentumKOALA, "++": KOALAPlusPlus}
SHARED = ["V", "M"]  # the methods whose weights all share one covariance
REFERENCES: dict[str, type[reference.Koala]] = {
    "V": reference.Vanilla,
    "M": reference.Momentum,
    "++": PlusPlus,
}
SCALARS = {
    VanillaKOALA: ["covariance", "measurement_noise"],
    MomentumKOALA: ["p11", "p12", "p22", "measurement_noise", "process_noise"],
    KOALAPlusPlus: ["measurement_noise"],
}

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
    """The shared scalars of a KOALA; of a KOALA++ also S of each block."""
    group = optimizer.param_groups[0]
    numbers = {name: float(group[name]) for name in SCALARS[type(optimizer)]}
    if isinstance(optimizer, KOALAPlusPlus):
        blocks = [p for group in optimizer.param_groups for p in group["params"]]
        numbers |= {f"S{i}": float(optimizer.state[p]["innovation_variance"]) for i, p in enumerate(blocks)}
    return numbers


def reference_scalars(plain: reference.Koala) -> dict[str, float]:
    """The same of a reference."""
    if isinstance(plain, reference.Momentum):
        (p11, p12), (p21, p22) = plain.P
        assert p12 == pytest.approx(p21, rel=1e-14)
        return {"p11": p11, "p12": p12, "p22": p22, "measurement_noise": plain.R, "process_noise": plain.qx}
    if isinstance(plain, PlusPlus):
        variances = {f"S{i}": 0.0 if m is None else m.S for i, m in enumerate(plain.memory)}
        return {"measurement_noise": plain.R, **variances}
    assert isinstance(plain, reference.Vanilla)
    return {"covariance": plain.P[0][0], "measurement_noise": plain.R}


def assert_same(optimizer: KOALA, parameters: list[Tensor], plain: reference.Koala, rel: float = 1e-9) -> None:
    """Parameters, shared scalars and, of a KOALA++, the state of each block are those of the reference."""
    for mine, wanted in zip(lists(parameters), plain.blocks, strict=True):
        assert mine == pytest.approx(wanted, rel=rel, abs=1e-12)
    assert scalars(optimizer) == pytest.approx(reference_scalars(plain), rel=rel, abs=1e-15)
    if isinstance(plain, PlusPlus):
        for p, memory in zip(parameters, plain.memory, strict=True):
            nothing = [0.0] * p.numel()
            H, v = (nothing, nothing) if memory is None else (memory.H, memory.v)
            mine_H, mine_v = lists([optimizer.state[p]["gradient"], optimizer.state[p]["product"]])
            assert mine_H == pytest.approx(H, rel=rel, abs=1e-12)
            assert mine_v == pytest.approx(v, rel=rel, abs=rel * math.hypot(*v) + 1e-15)


def assert_path(method: str, settings: dict[str, Any], groups: int, form: str, steps: int) -> None:
    """A run in float64 is the reference's: predicted point, filtered point, scalars and state to 1e-9.

    With two groups, the second has its own learning rate and weight decay.
    """
    parameters = start()
    if groups == 1:
        optimizer = METHODS[method](parameters, **settings)
        plain = REFERENCES[method](lists(parameters), **settings)
    else:
        optimizer = METHODS[method](
            [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3, "weight_decay": 0.1}], **settings
        )
        lr, decay = settings.get("lr", 1.0), settings.get("weight_decay", 0.0)
        both = settings | {"lr": [lr, 0.3, 0.3, 0.3], "weight_decay": [decay, 0.1, 0.1, 0.1]}
        plain = REFERENCES[method](lists(parameters), **both)

    for t in range(steps):
        if t == 0 or form == "stages":
            plain.predict()
        if form == "stages":
            optimizer.predict()
        assert_same(optimizer, parameters, plain)
        loss, gradients, loss_var = at(plain.blocks, t)
        losses = backward(optimizer, parameters, t)
        if form == "stages":
            plain.update(loss, gradients, loss_var)
            optimizer.update(losses.mean(), losses.square().mean())
            assert_same(optimizer, parameters, plain)
        else:
            plain.update(loss, gradients, loss_var)
            filtered = [*plain.blocks]
            plain.predict()
            optimizer.step(loss=losses)
            with optimizer.posterior():
                for mine, wanted in zip(lists(parameters), filtered, strict=True):
                    assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    moved = math.dist([x for b in plain.blocks for x in b], [x for b in lists(start()) for x in b])
    assert 0.1 < moved < 100


def snapshot(optimizer: KOALA, parameters: list[Tensor]) -> list[Tensor]:
    """Every number that a step may change, but the count of skipped steps."""
    groups = [v for g in optimizer.param_groups for k, v in g.items() if isinstance(v, Tensor) and k != "skipped"]
    state = [v for p in parameters for v in optimizer.state[p].values()]
    return [t.detach().clone() for t in [*parameters, *groups, *state]]


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
