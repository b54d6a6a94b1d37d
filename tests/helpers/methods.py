"""Our optimizers in a table, with the settings under which tests try them, and a small network to train."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fallline

CLASSES: dict[str, type[fallline.Optimizer]] = {
    "cool": fallline.CoolMomentum,
    "koala-v": fallline.VanillaKOALA,
    "koala-m": fallline.MomentumKOALA,
    "koala-pp": fallline.KOALAPlusPlus,
    "koala-orthogonal": fallline.OrthogonalKOALA,
    "arturo": fallline.ArTuRO,
    "lodo": fallline.LODO,
}
"""The classes, one a method."""

# A new method is new rows here: name -> class and the settings that make it differ from the row above.
TABLE: dict[str, tuple[type[fallline.Optimizer], dict[str, Any]]] = {
    "cool": (fallline.CoolMomentum, dict(lr=0.05, rho_0=0.9, cool_steps=20)),
    "cool-guarded": (fallline.CoolMomentum, dict(lr=0.05, rho_0=0.9, cool_steps=20, skip_nonfinite=True)),
    "cool-decay": (fallline.CoolMomentum, dict(lr=0.05, rho_0=0.9, cool_steps=20, weight_decay=0.1, schedule="linear")),
    "cool-decoupled": (
        fallline.CoolMomentum,
        dict(lr=0.05, rho_0=0.9, cool_steps=20, weight_decay=0.1, decoupled=True, skip_nonfinite=True),
    ),
    "koala-v": (fallline.VanillaKOALA, dict(lr=0.5, sigma=0.1)),
    "koala-v-decay": (fallline.VanillaKOALA, dict(lr=0.5, sigma=0.1, weight_decay=0.1)),
    "koala-v-unguarded": (fallline.VanillaKOALA, dict(lr=0.5, sigma=0.1, skip_nonfinite=False)),
    "koala-m": (fallline.MomentumKOALA, dict(lr=0.5)),
    "koala-m-decay": (fallline.MomentumKOALA, dict(lr=0.5, weight_decay=0.1, q_rule="paper")),
    "koala-m-fixed": (fallline.MomentumKOALA, dict(lr=0.5, q_rule="fixed")),
    "koala-m-unguarded": (fallline.MomentumKOALA, dict(lr=0.5, skip_nonfinite=False)),
    "koala-pp": (fallline.KOALAPlusPlus, dict(lr=0.5, sigma=0.1, q=0.1)),
    "koala-pp-decay": (fallline.KOALAPlusPlus, dict(lr=0.5, sigma=0.1, q=0.1, weight_decay=0.1)),
    "koala-pp-vanilla": (fallline.KOALAPlusPlus, dict(lr=0.5, symmetric=False, skip_nonfinite=False)),
    "koala-orthogonal-decay": (fallline.OrthogonalKOALA, dict(lr=0.5, q=5e-4, weight_decay=0.1)),
    "koala-metric-identity": (fallline.MetricKOALA, dict(metric="identity", beta=0.5, q=1e-2, skip_nonfinite=False)),
    "arturo": (fallline.ArTuRO, dict(lr=0.05)),
    "arturo-decay": (
        fallline.ArTuRO,
        dict(lr=0.05, weight_decay=0.1, process_noise_quad=0.5, intercept_init="centred", newton_iters=2),
    ),
    "arturo-bisect": (fallline.ArTuRO, dict(lr=0.05, solver="bisect", curvature_floor=float("-inf"))),
    "arturo-group": (fallline.ArTuRO, dict(lr=0.05, scope="group", eta_min=0.25)),
    "arturo-tensor": (fallline.ArTuRO, dict(lr=0.05, scope="tensor", skip_nonfinite=False)),
    "arturo-second-moment": (fallline.ArTuRO, dict(lr=0.01, curvature="second-moment", process_noise=0.1)),
    "lodo": (fallline.LODO, dict(lr=0.1, meta_lr=0.01, depth=5)),
    "lodo-decay": (
        fallline.LODO,
        dict(
            lr=0.1, meta_lr=0.01, depth=3, block_size=3, weight_decay=0.1, meta_eps_mode="torch", second_moment="block"
        ),
    ),
    "lodo-sgd": (fallline.LODO, dict(lr=0.1, beta=0.5, depth=4, padding="ceil", meta_optimizer="sgd", bucket_size=20)),
    "lodo-residual": (fallline.LODO, dict(lr=0.1, beta=0.5, depth=4, preconditioner="residual")),
    "lodo-diagonal": (fallline.LODO, dict(lr=0.3, beta=0.5, meta_lr=0.01, preconditioner="diagonal")),
    "lodo-global": (fallline.LODO, dict(lr=0.3, beta=0.5, meta_lr=0.01, preconditioner="global")),
    "lodo-unguarded": (fallline.LODO, dict(lr=0.3, beta=0.5, depth=0, skip_nonfinite=False)),
}
GUARDED = [name for name, (cls, kw) in TABLE.items() if kw.get("skip_nonfinite", cls is not fallline.CoolMomentum)]
METHODS = [
    "cool-decay",
    "koala-v-decay",
    "koala-m-decay",
    "koala-pp-decay",
    "koala-orthogonal-decay",
    "lodo-decay",
]  # one a method, where a promise costs seconds


def make(name: str, params: Any, **more: Any) -> fallline.Optimizer:
    cls, settings = TABLE[name]
    return cls(params, **{**settings, **more})


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def losses(model: nn.Module, i: int) -> Tensor:
    """Per-example losses of minibatch ``i``."""
    g = torch.Generator().manual_seed(100 + i)
    x, y = torch.randn(8, 5, generator=g), torch.randn(8, 3, generator=g)
    output = model(x.to(next(model.parameters()).dtype))
    return (output.to(torch.promote_types(output.dtype, torch.float32)) - y).square().mean(1)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range, sign: float = 1.0) -> None:
    for i in steps:
        opt.zero_grad()
        each = sign * losses(model, i)
        each.mean().backward()
        opt.step(loss=each.detach())  # type: ignore[call-arg]


def everything(model: nn.Module, opt: torch.optim.Optimizer) -> list[Any]:
    """Parameters, state and settings, copied; to compare with :func:`assert_bits`."""
    state = opt.state_dict()
    tensors = [p.detach().clone() for p in model.parameters()]
    return [tensors, copy.deepcopy(state["state"]), copy.deepcopy(state["param_groups"])]


def close(a: nn.Module, b: nn.Module, rtol: float) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
