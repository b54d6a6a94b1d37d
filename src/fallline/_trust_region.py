"""The trust region of arTuRO: the multiplier that gives a step its KL divergence.

In whitened coordinates y, in which the KL divergence of a step is |y|^2 / 2, the step of multiplier eta is
y = -z / (w + eta), with the whitened gradient z and curvature w >= 0. Sought is the smallest eta >= 0 with

    phi(eta) = 1/2 sum z^2 / (w + eta)^2 <= epsilon.

Nothing here depends on a tensor's value on the host: no branches, a fixed number of passes.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

TINY = 1e-37  # in place of a multiplier of 0, so that 0 / 0 in a coordinate without gradient and curvature is 0
CAP, TOLERANCE, CLOSE, FACTOR, HALVINGS = 1e4, 0.5, 0.1, 3.0, 15  # of the authors' bisection

Sums = Callable[..., tuple[Tensor, ...]]


def secular(p: Tensor, z: Tensor, w: Tensor, eta: Tensor) -> tuple[Tensor, ...]:
    """Kernel: sum of z^2 / (w + eta)^2, and of z^2 / (w + eta)^3."""
    curvature = w + eta
    y2 = (z / curvature).square_()
    return y2.sum(), y2.div_(curvature).sum()


def join(parts: Sequence[Tensor]) -> Tensor:
    """Vectors end to end."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class TrustRegion:
    """The constraints of one step: one for all tensors, one a group or one a tensor.

    Vectors are [tensors]; what belongs to a constraint is repeated for each of its tensors. Where groups have bounds
    epsilon_g of their own, a constraint is sum_g KL_g / epsilon_g <= 1: with ``share`` = epsilon_g / epsilon, epsilon
    their largest, eta is in units of the largest bound and a tensor's own multiplier is eta / share.

    Args:
        groups: with ``lr``, the bound; ``z`` and ``w``, whitened gradients and curvatures.
        scope: ``"global"``, ``"group"`` or ``"tensor"``.
        sums: what runs a kernel over a group and completes its sums, [tensors] each.
    """

    def __init__(self, groups: list[SimpleNamespace], scope: str, sums: Sums) -> None:
        self.groups, self.scope, self.sums = groups, scope, sums
        self.sizes = [len(t.params) for t in groups]
        like = groups[0].multiplier
        bounds = join([like.new_ones(n) * t.lr for t, n in zip(groups, self.sizes, strict=True)])
        self.bound = self.over(torch.amax, bounds)
        self.share = torch.where(bounds > 0, bounds / self.bound, 0.0)
        self.stretch = 1 / self.share  # a tensor whose bound is 0 has an infinite multiplier, so it does not move;
        self.weight = torch.where(bounds > 0, self.stretch, 0.0)  # and no weight in its constraint
        self.weight2 = self.weight.square()
        # A computed step keeps to the bound if it aims this much below: its own rounding is a few units.
        self.margin = 1 - 8 * max(torch.finfo(a.dtype).eps for t in groups for a in t.w)

    def over(self, reduce: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """Reduce over each constraint's tensors, and give each of them the result."""
        if self.scope == "tensor":
            return v
        parts = [v] if self.scope == "global" else v.split(self.sizes)
        return join([reduce(part).expand_as(part) for part in parts])

    def own(self, eta: Tensor) -> Tensor:
        """Each tensor's own multiplier, in the units of its own bound."""
        return eta.clamp_min(TINY) * self.stretch

    def at(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """2 KL of each tensor's step at ``eta``; and 2 phi and sum z^2 / (w + eta)^3 of its constraint."""
        parts = zip(self.groups, self.own(eta).split(self.sizes), strict=True)
        rows = [self.sums(secular, t, t.z, t.w, own) for t, own in parts]
        squares, cubes = (join(column) for column in zip(*rows, strict=True))
        return squares, self.over(torch.sum, squares * self.weight), self.over(torch.sum, cubes * self.weight2)

    def newton(self, S: Tensor, Sw: Tensor, reach: Tensor, iters: int, eta_min: float) -> tuple[Tensor, Tensor, Tensor]:
        r"""Newton's method on phi^(-1/2) = epsilon^(-1/2), increasing and concave in eta: from below it stays below.

        So phi is never below epsilon where the constraint is active, and one factor on the step makes them equal.

        Args:
            S, Sw: sums of z^2 and of z^2 w.
            reach: largest of \|z\| / sqrt(2 epsilon_g) - w over the tensor's weights.
            iters: passes.
            eta_min: smallest multiplier.

        Returns:
            eta; the factor on each step; each tensor's KL.
        """
        # Power means bound eta below by sqrt(S / (2 epsilon)) - Sw / S over any subset of the coordinates: here over
        # all, over each tensor, over each weight. The last is above 0 wherever z != 0 = w, where phi(0) is infinite.
        twice = 2 * self.bound
        S, Sw = S * self.share, Sw * self.share**2
        lower = torch.where(self.share > 0, reach * self.share, 0.0)
        for s, sw in ((S, Sw), (self.over(torch.sum, S), self.over(torch.sum, Sw))):
            usable = (s > 0) & s.isfinite() & sw.isfinite()  # squares overflow before z does
            lower = lower.maximum(torch.where(usable, (s / twice).sqrt() - sw / s, 0.0))
        eta = self.over(torch.amax, lower).clamp_min(eta_min)
        squares, T2, T3 = self.at(eta)
        for _ in range(iters):
            move = torch.where(T3 > 0, T2 / T3 * ((T2 / twice).sqrt() - 1), 0.0)
            eta = (eta + move).clamp_min(eta_min)
            squares, T2, T3 = self.at(eta)
        excess = twice * self.margin < T2
        scale = torch.where(excess, (twice / T2).sqrt().clamp_max(1.0) * self.margin, 1.0)
        return eta, scale, squares * scale.square() / 2

    def bisect(self, last: Tensor, eta_min: float) -> tuple[Tensor, Tensor, Tensor]:
        """The authors' bisection: to 0.5 in eta or a tenth in phi, in a bracket around the last eta, not checked.

        Args:
            last: 0-D, the last step's eta; negative in the first.
            eta_min: smallest multiplier.

        Returns:
            As :meth:`newton`; the factor is 1.
        """
        last = last.expand_as(self.bound)
        low = torch.where(last < 0, 0.0, last / FACTOR)
        high = torch.where(last < 0, CAP, (last * FACTOR).clamp_max(CAP))
        done = torch.zeros_like(last, dtype=torch.bool)
        for _ in range(HALVINGS):  # as many as the widest bracket needs; the loop's exit is a mask
            done = done | (high - low <= TOLERANCE)
            middle = (low + high) / 2
            phi = self.at(middle)[1] / 2
            low = torch.where(~done & (phi > self.bound), middle, low)
            high = torch.where(~done & ~(phi > self.bound), middle, high)
            done = done | ((phi - self.bound).abs() < CLOSE * self.bound)
        eta = ((low + high) / 2).clamp_min(eta_min)
        return eta, torch.ones_like(eta), self.at(eta)[0] / 2

    def each(self, v: Tensor) -> Tensor:
        """One number a constraint: 0-D, [groups] or [tensors]."""
        if self.scope == "tensor":
            return v
        return v[0] if self.scope == "global" else torch.stack([part[0] for part in v.split(self.sizes)])
