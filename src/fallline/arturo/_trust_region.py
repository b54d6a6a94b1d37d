"""The trust region of arTuRO: the multiplier that gives a step its KL divergence.

In whitened coordinates y, in which the KL divergence of a step is |y|^2 / 2, the step of multiplier eta is
y = -z / (w + eta), with the whitened gradient z and curvature w >= 0. Sought is the smallest eta >= 0 with

    phi(eta) = 1/2 sum z^2 / (w + eta)^2 <= epsilon.

phi is an integral over the curvatures, and three moments of their distribution in a tensor with one of its ends give
two atoms whose phi is never below the true one (the lower end) or never above it (the upper end): Gauss-Radau
quadrature (Golub and Meurant, Matrices, Moments and Quadrature, 2010, theorem 6.4). So a step keeps to the bound, and
comes close to it, after the one pass in which the moments were summed.

Nothing here depends on a tensor's value on the host: no branches, a fixed number of passes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._group import Group
from .._shards import size

TINY = 1e-37  # in place of 0 in a denominator: 0 / 0 in a coordinate without gradient and curvature is 0
ATOMIC = 4  # Newton steps on the atoms: within 1e-6 of the solution after three, in all runs that were watched
CAP, TOLERANCE, CLOSE, FACTOR, HALVINGS = 1e4, 0.5, 0.1, 3.0, 15  # of the authors' bisection

At = Callable[[Tensor], tuple[Tensor, Tensor]]


def join(parts: Sequence[Tensor]) -> Tensor:
    """Vectors end to end."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class GaussianGroup(Group):
    """What a step reads of a group."""

    __slots__ = ()

    reg_weight: float
    prior_prec: float
    nu: float
    process_noise: float
    process_noise_quad: float | None
    measurement_noise: float
    curvature_init: float
    curvature_floor: float
    intercept_init: str
    curvature: str
    beta2: float
    weight_decay: float
    solver: str
    newton_iters: int
    eta_min: float
    scope: str
    multiplier: Tensor
    precision: list[Tensor]
    slope: list[Tensor]
    second_moment: list[Tensor]
    intercept: list[Tensor]
    p00: list[Tensor]
    p01: list[Tensor]
    p11: list[Tensor]
    started: list[Tensor]
    seen: list[Tensor]


class Moments(NamedTuple):
    """What one pass finds of each tensor, [tensors]."""

    squares: Tensor  # sum of z^2
    first: Tensor  # of z^2 w
    second: Tensor  # of z^2 w^2
    minus_low: Tensor  # largest -w
    high: Tensor  # largest w
    most: Tensor  # largest of |z| / sqrt(2 epsilon_g); for Newton's method, of that minus w

    @property
    def low(self) -> Tensor:
        return -self.minus_low


class TrustRegion:
    """The constraints of one step: one for all tensors, one a group or one a tensor.

    Vectors are [tensors]; what belongs to a constraint is repeated for each of its tensors. Where groups have bounds
    epsilon_g of their own, a constraint is sum_g KL_g / epsilon_g <= 1: with ``share`` = epsilon_g / epsilon, epsilon
    their largest, eta is in units of the largest bound and a tensor's own multiplier is eta / share.

    Args:
        groups: with ``lr``, the bound.
        scope: ``"global"``, ``"group"`` or ``"tensor"``.
        squared: whether z is known by its squares alone, from moments.
    """

    def __init__(self, groups: Sequence[GaussianGroup], scope: str, squared: bool) -> None:
        self.scope = scope
        self.sizes = [len(t.params) for t in groups]
        like = groups[0].multiplier
        self.bounds = join([like.new_ones(n) * t.lr for t, n in zip(groups, self.sizes, strict=True)])
        self.bound = self.over(torch.amax, self.bounds)
        self.share = torch.where(self.bounds > 0, self.bounds / self.bound, 0.0)
        self.stretch = 1 / self.share  # a tensor whose bound is 0 has an infinite multiplier, so it does not move;
        self.weight = torch.where(self.bounds > 0, self.stretch, 0.0)  # and no weight in its constraint
        self.count = float(sum(size(p) for t in groups for p in t.owners))
        precision = max((torch.finfo(a.dtype) for t in groups for a in t.precision), key=lambda info: info.eps)
        # A computed step keeps to the bound if it aims this much below: the step is rounded, and so are moments.
        self.margin = 1 - (32 if squared else 8) * precision.eps
        self.least = torch.full_like(self.bound, TINY)
        if squared:  # squares vanish before z does: from this on, all that has vanished is a millionth of the bound
            self.least = 1e3 * (precision.tiny * self.count / (2 * self.bound)).sqrt()

    def over(self, reduce: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """Reduce over each constraint's tensors, and give each of them the result."""
        if self.scope == "tensor":
            return v
        parts = [v] if self.scope == "global" else v.split(self.sizes)
        return join([reduce(part).expand_as(part) for part in parts])

    def own(self, eta: Tensor) -> Tensor:
        """Each tensor's own multiplier, in the units of its own bound."""
        return eta.maximum(self.least) * self.stretch

    def below(self, m: Moments) -> Tensor:
        """A multiplier not above the solution: that of atoms at the upper ends, or where a weight alone needs it."""
        weights, nodes = self._atoms(m, m.high)
        usable = weights.isfinite().all(1) & nodes.isfinite().all(1)
        weights, nodes = (torch.where(usable[:, None], x, 0.0) for x in (weights, nodes))
        reach = self.over(torch.amax, torch.where(self.share > 0, m.most * self.share, 0.0))
        return self._by_atoms(weights, nodes, 0.0)[0].maximum(reach)

    def by_moments(self, m: Moments, eta_min: float) -> tuple[Tensor, Tensor]:
        """As :meth:`newton`, but by atoms at the lower ends: the KL divergence is at most the bound, and near it."""
        weights, nodes = self._atoms(m, m.low)
        # Squares overflow before z does, which then is at most as large as the largest.
        largest = self.count * 2 * self.bounds * m.most.square()
        worst = torch.stack([largest, torch.zeros_like(largest)], 1)
        usable = weights.isfinite().all(1) & nodes.isfinite().all(1)
        weights = torch.where(usable[:, None], weights, worst)
        nodes = torch.where(usable[:, None], nodes, m.low[:, None]).clamp_min(0)
        return self._by_atoms(weights, nodes, eta_min)

    def _atoms(self, m: Moments, end: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Radau: weights and curvatures of two atoms a tensor, [tensors, 2] each, the first at ``end``."""
        mean = m.first / m.squares - end
        square = (m.second / m.squares - 2 * end * m.first / m.squares + end.square()).maximum(mean.square())
        other = torch.where(square > 0, mean.square() / square, 0.0)
        node = torch.where(square > 0, end + square / mean, end)
        node = node.maximum(m.low).minimum(m.high)  # where rounding left the range, back to it
        weights = torch.where(m.squares > 0, m.squares, 0.0)[:, None] * torch.stack([1 - other, other], 1)
        return weights, torch.stack([end, node], 1)

    def _by_atoms(self, weights: Tensor, nodes: Tensor, eta_min: float) -> tuple[Tensor, Tensor]:
        """:meth:`newton` where phi is given by atoms, [tensors, 2], from the best of the power means' lower bounds."""

        def at(own: Tensor) -> tuple[Tensor, Tensor]:
            curvature = nodes + own[:, None]
            y2 = weights / curvature.square()
            return y2.sum(1), (y2 / curvature).sum(1)

        reach = ((weights / (2 * self.bounds)[:, None]).sqrt() - nodes).amax(1)
        lower = torch.where(self.share > 0, reach * self.share, 0.0)
        S, Sw = weights.sum(1) * self.share, (weights * nodes).sum(1) * self.share.square()
        for s, sw in ((S, Sw), (self.over(torch.sum, S), self.over(torch.sum, Sw))):
            lower = lower.maximum(torch.where(s > 0, (s / (2 * self.bound)).sqrt() - sw / s, 0.0))
        return self.newton(at, self.over(torch.amax, lower), ATOMIC, eta_min)

    def newton(self, at: At, eta: Tensor, steps: int, eta_min: float) -> tuple[Tensor, Tensor]:
        r"""Newton's method on phi^(-1/2) = epsilon^(-1/2), increasing and concave in eta: from below it stays below.

        So phi is never below epsilon where the constraint is active, and one factor on the step makes them equal.

        Args:
            at: each tensor's sums of z^2 / (w + eta)^2 and z^2 / (w + eta)^3 at its own multiplier.
            eta: where to start, not above the solution.
            steps: how many; ``at`` is asked once more than that.
            eta_min: smallest multiplier.

        Returns:
            eta; the factor on each step.
        """
        twice = 2 * self.bound
        for step in range(steps + 1):
            eta = eta.clamp_min(eta_min)
            squares, cubes = at(self.own(eta))
            T2, T3 = self.over(torch.sum, squares * self.weight), self.over(torch.sum, cubes * self.weight.square())
            if step < steps:
                eta = eta + torch.where(T3 > 0, T2 / T3 * ((T2 / twice).sqrt() - 1), 0.0)
        scale = torch.where(twice * self.margin < T2, (twice / T2).sqrt().clamp_max(1.0) * self.margin, 1.0)
        return eta, scale

    def bisect(self, at: At, last: Tensor, eta_min: float) -> tuple[Tensor, Tensor]:
        """The authors' bisection: to 0.5 in eta or a tenth in phi, in a bracket around the last eta, not checked.

        Args:
            at: as for :meth:`newton`.
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
            phi = self.over(torch.sum, at(self.own(middle))[0] * self.weight) / 2
            low = torch.where(~done & (phi > self.bound), middle, low)
            high = torch.where(~done & ~(phi > self.bound), middle, high)
            done = done | ((phi - self.bound).abs() < CLOSE * self.bound)
        eta = ((low + high) / 2).clamp_min(eta_min)
        return eta, torch.ones_like(eta)

    def each(self, v: Tensor) -> Tensor:
        """One number a constraint: 0-D, [groups] or [tensors]."""
        if self.scope == "tensor":
            return v
        return v[0] if self.scope == "global" else torch.stack([part[0] for part in v.split(self.sizes)])
