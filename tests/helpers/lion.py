"""Lion (Chen et al., 2023), written as docs/tutorial-new-optimizer.md says."""

from typing import Annotated

import torch

import fallline
from fallline.kernels import clean, zeros_like

NonNegative, Share = Annotated[float, "[0, inf)"], Annotated[float, "[0, 1)"]


def lion_(p, g, m, *, lr, share1, share2, weight_decay, ok):
    g = clean(g, ok)
    p.mul_(1 - lr * weight_decay).sub_(torch.lerp(m, g, share1).sign() * lr)
    m.lerp_(g, share2)


class Lion(fallline.Optimizer):
    """p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g);  m <- beta2 m + (1 - beta2) g."""

    def __init__(
        self, params, lr=1e-3, *, beta1: Share = 0.9, beta2: Share = 0.99, weight_decay: NonNegative = 0.0, **run
    ):
        super().__init__(params, dict(lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay), **run)

    def init_state(self, p, group):
        return {"average": zeros_like(p)}

    def advance(self, groups, shared, loss):
        ok = self.finite(groups)  # always: the sign of NaN is 0, and a weight would stop for ever
        live = ok.double()  # 0 leaves everything where it is
        for t in groups:
            scalars = dict(lr=t.lr * live, share1=1 - t.beta1, share2=(1 - t.beta2) * live)
            self.each(lion_, t, t.grads, t.average, weight_decay=t.weight_decay, ok=ok, **scalars)
        shared.skipped.add_(~ok)
