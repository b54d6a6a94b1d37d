"""Every word that fused kernels know, in all its forms, for C and for Triton."""

from collections.abc import Callable

import torch
from torch import Tensor

from fallline.kernels import largest

WORDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda x, y: x + y + 1 + (2 + y),
    "-": lambda x, y: x - y - (1 - y) - 3,
    "*": lambda x, y: 2 * x * y,
    "/": lambda x, y: x / (3 + y) + 1 / (3 + y),
    "**": lambda x, y: x**2 + x**3 + x.abs() ** 0.5 + (x.abs() + 1) ** -0.5 + (x.abs() + 1) ** -1,
    "comparisons": lambda x, y: (x > y).float() + (x >= 0) * y + (1 - (x < y).to(x.dtype)) + (x <= y) * (x == x),
    "&": lambda x, y: torch.where((x > 0) & (y > 0), x, y),
    "|": lambda x, y: torch.where((x > 0) | (y > 0), x, y),
    "~": lambda x, y: torch.where(~(x > 0), x, y),
    "abs": lambda x, y: x.abs() + abs(y),
    "add": lambda x, y: torch.add(x, y, alpha=2),
    "addcdiv": lambda x, y: x.addcdiv(y, 3 + y, value=0.5),
    "addcmul": lambda x, y: x.addcmul(y, y, value=0.5),
    "amax": lambda x, y: x,
    "clamp": lambda x, y: x.clamp(-1, 1) + x.clamp(min=y) + y.clamp(max=0.5) + torch.clip(x, 0, 2),
    "clamp_max": lambda x, y: x.clamp_max(0.1),
    "clamp_min": lambda x, y: x.clamp_min(0.1),
    "clone": lambda x, y: x.clone().mul_(2) + x,
    "copy_": lambda x, y: x.clone().copy_(y) + x,
    "div": lambda x, y: torch.div(x, 2),
    "dot": lambda x, y: x,
    "exp": lambda x, y: x.exp(),
    "fill_": lambda x, y: x.clone().fill_(2.0) + y,
    "isfinite": lambda x, y: torch.where(((x / 0).isfinite()) | (x.isfinite()), y, x),
    "isnan": lambda x, y: torch.where((x * 0 / 0).isnan(), y, x) + torch.where(x.isnan(), y, x),
    "lerp": lambda x, y: x.lerp(y, 0.25) + x.lerp(y, 0.75) + torch.lerp(x, y, y),
    "log": lambda x, y: (x.abs() + 1).log(),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "mul": lambda x, y: x.mul(y),
    "neg": lambda x, y: -x + y.neg(),
    "ones_like": lambda x, y: torch.ones_like(x) + y,
    "pow": lambda x, y: torch.pow(x, 2),
    "reciprocal": lambda x, y: (3 + y).reciprocal(),
    "rsqrt": lambda x, y: (3 + y).rsqrt(),
    "sign": lambda x, y: x.sign() + torch.sign(x * 0) + (x * 0 / 0).sign() + y,
    "sqrt": lambda x, y: x.abs().sqrt(),
    "square": lambda x, y: x.square(),
    "sub": lambda x, y: torch.sub(x, y, alpha=3),
    "sum": lambda x, y: x,
    "to": lambda x, y: x.double().float().to(torch.float64).to(x.dtype) + y,
    "torch.linalg.vector_norm": lambda x, y: x,
    "where": lambda x, y: torch.where(x > 0, y, 0.0),
    "zero_": lambda x, y: x.clone().zero_() + y,
    "zeros_like": lambda x, y: torch.zeros_like(x) + y,
}


def spoken(p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Every word in one kernel, each of its own sum."""
    sums = tuple(word(p, g).sum() for word in WORDS.values())
    return (*sums, torch.dot(p.flatten(), g.flatten()), torch.linalg.vector_norm(p), p.amax(), largest(g))
