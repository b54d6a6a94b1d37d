"""Adan (Xie et al., 2022), written as docs/tutorial-new-optimizer.md says."""

from typing import Annotated

import torch

import fallline
from fallline.kernels import clean, scalar_like, zeros_like

NonNegative, Share = Annotated[float, "[0, inf)"], Annotated[float, "[0, 1)"]


def adan_(p, g, before, m, v, n, first, c1, c2, c3, *, lr, live, share1, share2, share3, eps, weight_decay, ok):
    g = clean(g, ok)
    change = torch.where(first, 0.0, g - before)
    before.lerp_(g, live)
    m.lerp_(g, share1 * live)
    v.lerp_(change, share2 * live)
    n.lerp_((g + (1 - share2) * change).square(), share3 * live)
    p.sub_((m / c1 + v * (1 - share2) / c2) / ((n / c3).sqrt() + eps) * lr).div_(1 + lr * weight_decay)


class Adan(fallline.Optimizer):
    """Adam with the gradients' differences as a second momentum, each average free of its start at zero."""

    def __init__(
        self, params, lr=1e-3, *, beta1: Share = 0.98, beta2: Share = 0.92, beta3: Share = 0.99,
        eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0, **run,
    ):  # fmt: skip
        super().__init__(
            params, dict(lr=lr, beta1=beta1, beta2=beta2, beta3=beta3, eps=eps, weight_decay=weight_decay), **run
        )

    def init_state(self, p, group):
        averages = {name: zeros_like(p) for name in ("before", "average", "difference", "square")}
        return {**averages, "steps": scalar_like(p)}

    def advance(self, groups, shared, loss):
        ok = self.finite(groups) if groups[0].skip_nonfinite else None
        live = 1.0 if ok is None else ok.double()  # 0 leaves everything where it is
        for t in groups:
            taken = torch.stack(t.steps).double()
            for own, now in zip(t.steps, (taken + live).unbind(), strict=True):
                own.copy_(now)
            betas = (t.beta1, t.beta2, t.beta3)
            corrections = [1 - beta ** (taken + live).clamp_min(1) for beta in betas]
            shares = {f"share{i}": 1 - beta for i, beta in enumerate(betas, 1)}
            lists = (t.grads, t.before, t.average, t.difference, t.square, taken == 0, *corrections)
            scalars = dict(lr=t.lr * live, live=live, eps=t.eps, weight_decay=t.weight_decay, ok=ok)
            self.each(adan_, t, *lists, **shares, **scalars)
        if ok is not None:
            shared.skipped.add_(~ok)
