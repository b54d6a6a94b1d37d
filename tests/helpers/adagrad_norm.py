"""AdaGrad-Norm (Ward, Wu and Bottou, 2019) with a step length for each tensor: one number of state each."""

from typing import Annotated

import torch

import fallline
from fallline.kernels import clean, scalar_like, squared_norms

NonNegative = Annotated[float, "[0, inf)"]


def move_(p, g, rate, *, ok):
    p.sub_(clean(g, ok) * rate)


class AdaGradNorm(fallline.Optimizer):
    """total <- total + |g|^2;  p <- p - lr g / sqrt(total + eps), for each tensor by itself."""

    def __init__(self, params, lr=0.1, *, eps: NonNegative = 1e-10, **run):
        super().__init__(params, dict(lr=lr, eps=eps), **run)

    def init_state(self, p, group):
        return {"total": scalar_like(p)}

    def advance(self, groups, shared, loss):
        ok = self.finite(groups) if groups[0].skip_nonfinite else None
        for t in groups:
            (squares,) = self.sums(squared_norms, t, t.grads)
            rate = t.lr
            if ok is not None:
                squares, rate = torch.where(ok, squares, 0.0), t.lr * ok.double()
            for own, square in zip(t.total, squares.unbind(), strict=True):
                own.add_(square)
            rates = rate / (torch.stack(t.total).double() + t.eps).sqrt()
            self.each(move_, t, t.grads, rates, ok=ok)
        if ok is not None:
            shared.skipped.add_(~ok)
