"""arTuRO's kernels: the model of the loss at a weight, gradient and curvature h, learned in either of two ways.

``rls``: a Kalman filter of the gradient's slope and intercept. ``second_moment``: the root of the squared gradients'
mean, and a Kalman filter of the intercept alone. Each has an observation, which also sums what the trust region asks
for; what a multiplier's step would be long; and the step.
"""

import torch
from torch import Tensor

from ..kernels import clean, largest
from ._trust_region import TINY

HUGE = 1e18  # gradients above have a square that float32 does not hold


def rls(x: Tensor, a: Tensor, b: Tensor, c: float | Tensor, floor: float | Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the quadratic model and its curvature h at x; c is kappa times the prior's precision."""
    return torch.addcmul(b, a + c, x), a.clamp_min(floor).add_(c)


def second_moment(x: Tensor, v: Tensor, b: Tensor, c: float | Tensor, floor: float | Tensor) -> tuple[Tensor, Tensor]:
    """The same where the gradient is b everywhere, but for the prior's, and the curvature sqrt(v)."""
    return b + c * x, v.sqrt().clamp_min_(floor).add_(c)


def shrunk(p: Tensor, shrink: float | Tensor | None) -> Tensor:
    """Weights after their decay."""
    return p if shrink is None else p * shrink


def rls_observe_(
    p: Tensor,
    g: Tensor,
    precision: Tensor,
    a: Tensor,
    b: Tensor,
    p00: Tensor,
    p01: Tensor,
    p11: Tensor,
    started: Tensor,
    *,
    shrink: float | Tensor | None,
    start: float | None,
    q: float,
    q_quad: float,
    r: float,
    c: float,
    floor: float,
    per_radius: Tensor,
    less: float,
    ok: Tensor | None,
) -> tuple[Tensor, ...]:
    """Recursive least squares of g on (1, p), state (b, a); then what the step's multiplier is found from.

    The covariance, of determinant d, is not subtracted from but divided, so that it stays positive:
    P00 <- (P00 r + x^2 d) / S,  P01 <- (P01 r - x d) / S,  P11 <- (P11 r + d) / S.
    """
    x, g = shrunk(p, shrink), clean(g, ok)
    first = g if start is None else g - start * x
    b_ = torch.where(started > 0, b, first)
    c00, c11 = p00 + q, p11 + q_quad
    k0, k1 = c00 + p01 * x, p01 + c11 * x
    by = (k0 + k1 * x).clamp_min_(0).add_(r).reciprocal_()  # 1 / S
    delta = (g - b_).sub_(a * x).mul_(by)
    d = (c00 * c11).sub_(p01 * p01).clamp_min_(0)
    xd = x * d
    new = (
        torch.addcmul(b_, k0, delta),
        torch.addcmul(a, k1, delta),
        c00.mul_(r).addcmul_(x, xd).mul_(by),
        (p01 * r).sub_(xd).mul_(by),
        c11.mul_(r).add_(d).mul_(by),
    )
    for old, value in zip((b, a, p00, p01, p11), new, strict=True):
        old.copy_(value if ok is None else torch.where(ok, value, old))
    return moments(p, *rls(x, a, b, c, floor), precision, per_radius, less)


def second_moment_observe_(
    p: Tensor,
    g: Tensor,
    precision: Tensor,
    v: Tensor,
    b: Tensor,
    gain: Tensor,
    share: Tensor,
    *,
    shrink: float | Tensor | None,
    c: float,
    floor: float,
    per_radius: Tensor,
    less: float,
    ok: Tensor | None,
) -> tuple[Tensor, ...]:
    """Averages of g and of its square, by gains that are 0 where not ``ok``; then as :func:`rls_observe_`."""
    g = clean(g, ok)
    b.add_((g - b).mul_(gain))
    v.add_(g.clamp(-HUGE, HUGE).square_().sub_(v).mul_(share))
    return moments(p, *second_moment(shrunk(p, shrink), v, b, c, floor), precision, per_radius, less)


def rls_secular(
    p: Tensor,
    precision: Tensor,
    a: Tensor,
    b: Tensor,
    eta: Tensor,
    *,
    shrink: float | Tensor | None,
    c: float,
    floor: float,
) -> tuple[Tensor, ...]:
    return secular(*rls(shrunk(p, shrink), a, b, c, floor), precision, eta)


def second_moment_secular(
    p: Tensor,
    precision: Tensor,
    v: Tensor,
    b: Tensor,
    eta: Tensor,
    *,
    shrink: float | Tensor | None,
    c: float,
    floor: float,
) -> tuple[Tensor, ...]:
    return secular(*second_moment(shrunk(p, shrink), v, b, c, floor), precision, eta)


def rls_move_(
    p: Tensor,
    precision: Tensor,
    a: Tensor,
    b: Tensor,
    eta: Tensor,
    scale: Tensor,
    *,
    shrink: float | Tensor | None,
    c: float,
    floor: float,
    kappa: float,
    nu: float,
    ok: Tensor | None,
) -> tuple[Tensor]:
    if shrink is not None:
        p.mul_(shrink)
    return move_(p, *rls(p, a, b, c, floor), precision, eta, scale, kappa, nu, ok)


def second_moment_move_(
    p: Tensor,
    precision: Tensor,
    v: Tensor,
    b: Tensor,
    eta: Tensor,
    scale: Tensor,
    *,
    shrink: float | Tensor | None,
    c: float,
    floor: float,
    kappa: float,
    nu: float,
    ok: Tensor | None,
) -> tuple[Tensor]:
    if shrink is not None:
        p.mul_(shrink)
    return move_(p, *second_moment(p, v, b, c, floor), precision, eta, scale, kappa, nu, ok)


def moments(
    p: Tensor, slope: Tensor, h: Tensor, precision: Tensor, per_radius: Tensor, less: float
) -> tuple[Tensor, ...]:
    """What :class:`~fallline.arturo._trust_region.Moments` are made of: three sums and three maxima."""
    variance = precision.reciprocal()
    w = h.mul_(variance)
    z2 = slope.square().mul_(variance)
    z2w = z2 * w
    sums = z2.sum(), z2w.sum(), (z2w * w).sum()
    most = slope.abs().mul_(variance.sqrt_()).mul_(per_radius)
    return (*sums, largest(-w), largest(w), largest(most.sub_(w.mul_(less))))


def secular(slope: Tensor, h: Tensor, precision: Tensor, eta: Tensor) -> tuple[Tensor, ...]:
    """In whitened coordinates, the sums of z^2 / (w + eta)^2 and of z^2 / (w + eta)^3."""
    denominator = h.add_(eta * precision).clamp_min_(TINY)
    y2 = slope.div_(denominator).square_().mul_(precision)
    return y2.sum(), y2.mul_(precision).div_(denominator).sum()


def move_(
    p: Tensor,
    slope: Tensor,
    h: Tensor,
    precision: Tensor,
    eta: Tensor,
    scale: Tensor,
    kappa: float,
    nu: float,
    ok: Tensor | None,
) -> tuple[Tensor]:
    """The step and the new precision; the sum is twice the step's KL divergence."""
    step = slope.div_((h + eta * precision).clamp_min_(TINY)).mul_(scale)
    p.sub_(step)
    kl = step.square_().mul_(precision).sum()
    new = h.add_(precision * nu).div_(kappa + nu).clamp_(1e-12, 1e12)
    precision.copy_(new if ok is None else torch.where(ok, new, precision))
    return (kl,)
