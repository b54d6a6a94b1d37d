"""A new optimizer on fallline's base class: normalized momentum, whose steps are as long as lr says."""

import torch

import fallline


def average_(p, g, m, *, share, ok):
    m.lerp_(torch.where(ok, g, 0.0), share)  # not g * ok: NaN times 0 is NaN


def squared_norm(p, m):
    return (m.square().sum(),)


def move_(p, m, *, distance, shrink):
    p.mul_(shrink).addcmul_(m, -distance)


class NormalizedMomentum(fallline.Optimizer):
    """m <- momentum m + (1 - momentum) g;  p <- (1 - lr weight_decay) p - lr m / |m|, the norm over all weights."""

    _ranges = fallline.Optimizer._ranges | {"momentum": "[0, 1)", "weight_decay": "[0, inf)"}

    def __init__(self, params, lr=0.1, *, momentum=0.9, weight_decay=0.0, maximize=False, fused=False):
        settings = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize, fused=fused)
        super().__init__(params, {**settings, "skip_nonfinite": True, "stochastic_rounding": False})

    def init_state(self, p, group):
        return {"average": torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))}

    def advance(self, groups, shared, loss):
        ok = self.finite(groups)  # 0-D, on the device, and never read
        for t in groups:
            self.each(average_, t, t.grads, t.average, share=(1 - t.momentum) * ok.double(), ok=ok)
        norm = torch.cat([self.sums(squared_norm, t, t.average)[0] for t in groups]).sum().sqrt()
        for t in groups:
            lr = t.lr * ok.double()
            self.each(move_, t, t.average, distance=lr / norm.clamp_min(1e-30), shrink=1 - lr * t.weight_decay)
        shared.skipped.add_(~ok)
