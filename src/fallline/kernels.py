"""What kernels and state are made of: for those who write a method on :class:`fallline.Optimizer`."""

import torch
from torch import Tensor

from ._engine.tape import HALF

# --- in a kernel ---


def squared_norm(t: Tensor) -> Tensor:
    """Sum of squares, without a temporary of the tensor's size; infinite where it overflows ``t``'s precision."""
    norm: Tensor = torch.linalg.vector_norm(t)
    return norm.square()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without a temporary of the tensors' size."""
    return torch.dot(a.flatten(), b.flatten())


def largest(t: Tensor) -> Tensor:
    """The largest element, for ``maxima``; -inf of an empty tensor, for a rank may hold nothing of a parameter."""
    return t.amax() if t.nbytes else t.new_full((), -torch.inf)


def clean(g: Tensor, ok: Tensor | None) -> Tensor:
    """The gradient, or zeros if ``ok`` (0-D bool) is false: a coefficient of 0 would not undo a NaN."""
    return g if ok is None else torch.where(ok, g, 0.0)


# --- kernels ---


def squared_norms(p: Tensor, t: Tensor) -> tuple[Tensor]:
    """The squared norm of what belongs to each parameter, such as its gradient."""
    return (squared_norm(t),)


# --- in init_state ---


def full_like(p: Tensor, value: float) -> Tensor:
    """A state tensor like ``p``: in float32 where ``p`` is in half precision, else in its own."""
    fill = complex(value, value) if p.is_complex() else value
    return torch.full_like(p, fill, dtype=torch.float32 if p.dtype in HALF else None, requires_grad=False)


def zeros_like(p: Tensor) -> Tensor:
    """The same, of zeros."""
    return full_like(p, 0.0)


def scalar_like(p: Tensor) -> Tensor:
    """A zero of a tensor's own, in the precision of its state: 0-D and real."""
    return torch.zeros((), dtype=torch.float32 if p.dtype in HALF else p.real.dtype, device=p.device)
