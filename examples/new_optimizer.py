"""A new optimizer on fallline's base class: normalized momentum, whose steps are as long as lr says."""

from typing import Annotated

import torch

import fallline
from fallline.kernels import clean, squared_norms, zeros_like

NonNegative, Share = Annotated[float, "[0, inf)"], Annotated[float, "[0, 1)"]


def average_(p, g, m, *, share, ok):
    m.lerp_(clean(g, ok), share)  # not g * ok: NaN times 0 is NaN


def move_(p, m, *, distance, shrink):
    p.mul_(shrink).addcmul_(m, -distance)


class NormalizedMomentum(fallline.Optimizer):
    """m <- momentum m + (1 - momentum) g;  p <- (1 - lr weight_decay) p - lr m / |m|, the norm over all weights."""

    def __init__(self, params, lr=0.1, *, momentum: Share = 0.9, weight_decay: NonNegative = 0.0, **run):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay), **run)

    def init_state(self, p, group):
        return {"average": zeros_like(p)}

    def advance(self, groups, shared, loss):
        ok = self.finite(groups)  # 0-D, on the device, and never read
        for t in groups:
            self.each(average_, t, t.grads, t.average, share=(1 - t.momentum) * ok.double(), ok=ok)
        norm = torch.cat([self.sums(squared_norms, t, t.average)[0] for t in groups]).sum().sqrt()
        for t in groups:
            lr = t.lr * ok.double()
            self.each(move_, t, t.average, distance=lr / norm.clamp_min(1e-30), shrink=1 - lr * t.weight_decay)
        shared.skipped.add_(~ok)
