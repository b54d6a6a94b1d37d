"""arTuRO (Dahlinger et al., 2023) in plain Python: every weight is an object that goes its way by general formulas.

With `curvature="second-moment"` the slope is not learned: the curvature is the root of the mean of all squared
gradients so far, weighted as Adam weights them, and the filter's state is the intercept alone.

The gradient model g(x) = slope x + intercept of one weight is the state of a Kalman filter, kept as a vector and a 2x2
matrix; its covariance is corrected in Joseph's form, which holds for any gain. The multiplier of the trust region is
bisected until two neighbouring floats enclose it. `published_multiplier` is the authors' solver with its early exits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .koala import Matrix, matmul, plus, transpose

SMALLEST, LARGEST = 1e-12, 1e12
"""Between these the precisions are kept."""


@dataclass
class Settings:
    """The settings of a group; `lr` is the bound of its trust region."""

    lr: float = 2.8e-3
    reg_weight: float = 0.3
    prior_prec: float = 0.0015
    nu: float = 1.3
    var_init: float = 0.01
    filter_var_init: float = 5e-5
    process_noise: float = 2.5e-3
    process_noise_quad: float | None = None
    measurement_noise: float = 1.22
    curvature_init: float = 0.1
    curvature_floor: float = 0.0
    weight_decay: float = 0.0
    intercept_init: str = "grad"
    curvature: str = "rls"
    beta2: float = 0.999


class Weight:
    """One weight x, its precision, and the filter of its gradient model: mean (intercept, slope) and covariance P."""

    def __init__(self, x: float, settings: Settings) -> None:
        self.x, self.settings = x, settings
        self.precision = 1 / settings.var_init
        self.mean: Matrix | None = None
        self.P = [[settings.filter_var_init, 0.0], [0.0, settings.filter_var_init]]
        self.gradients: list[float] = []

    def observe(self, g: float) -> None:
        """One step of the Kalman filter for the measurement g = H mean + noise, H = (1, x)."""
        s = self.settings
        if s.curvature == "second-moment":
            self.gradients.append(g)
            if self.mean is None:
                self.mean, self.P = [[g], [0.0]], [[s.measurement_noise, 0.0], [0.0, 0.0]]
                return
            variance = self.P[0][0] + s.process_noise
            trust = variance / (variance + s.measurement_noise)
            self.mean[0][0] = (1 - trust) * self.mean[0][0] + trust * g
            self.P[0][0] = (1 - trust) ** 2 * variance + trust**2 * s.measurement_noise
            return
        if self.mean is None:
            centred = s.curvature_init * self.x if s.intercept_init == "centred" else 0.0
            self.mean = [[g - centred], [s.curvature_init]]
        quad = s.process_noise if s.process_noise_quad is None else s.process_noise_quad
        self.P = plus(self.P, [[s.process_noise, 0.0], [0.0, quad]])
        H = [[1.0, self.x]]
        variance = matmul(matmul(H, self.P), transpose(H))[0][0] + s.measurement_noise
        gain = [[row[0] / variance] for row in matmul(self.P, transpose(H))]
        innovation = g - matmul(H, self.mean)[0][0]
        self.mean = plus(self.mean, gain, innovation)
        keep = plus([[1.0, 0.0], [0.0, 1.0]], matmul(gain, H), -1.0)
        noise = [[a * b * s.measurement_noise for (b,) in gain] for (a,) in gain]
        self.P = plus(matmul(matmul(keep, self.P), transpose(keep)), noise)

    @property
    def model(self) -> tuple[float, float]:
        """(intercept, slope) of the gradient model."""
        assert self.mean is not None
        (intercept,), (slope,) = self.mean
        return intercept, slope

    @property
    def second_moment(self) -> float:
        """Adam's, with its bias correction: the mean of all squares, each beta2 times the weight of the next."""
        weights = [self.settings.beta2**age for age in reversed(range(len(self.gradients)))]
        return math.fsum(w * g * g for w, g in zip(weights, self.gradients, strict=True)) / math.fsum(weights)

    @property
    def h(self) -> float:
        """Curvature of the regularised model."""
        s = self.settings
        curvature = self.model[1] if s.curvature == "rls" else math.sqrt(self.second_moment)
        return max(curvature, s.curvature_floor) + s.reg_weight * s.prior_prec

    @property
    def g(self) -> float:
        """Gradient of the regularised model at x; the floor has no part in it."""
        intercept, slope = self.model
        return slope * self.x + intercept + self.settings.reg_weight * self.settings.prior_prec * self.x

    def sharpen(self) -> None:
        """The precision's step: kappa + nu is the weight of what pulls, h and nu times the old precision pull."""
        s = self.settings
        wanted = (self.h + s.nu * self.precision) / (s.reg_weight + s.nu)
        self.precision = min(max(wanted, SMALLEST), LARGEST)


@dataclass(frozen=True)
class Term:
    """One coordinate of the trust-region problem: gradient, curvature, metric."""

    g: float
    h: float
    m: float

    def delta(self, eta: float) -> float:
        """Stationary point of g d + h d^2/2 + eta m d^2/2."""
        if self.g == 0:
            return 0.0
        return -self.g / (self.h + eta * self.m) if self.h + eta * self.m else -math.copysign(math.inf, self.g)


def divergence(terms: Iterable[Term], eta: float) -> float:
    """phi(eta): the KL of the means, half the squared length of the step in the metric."""
    return math.fsum(t.m * t.delta(eta) ** 2 for t in terms) / 2


def exact_multiplier(terms: Sequence[Term], bound: float, eta_min: float = 0.0) -> float:
    """The least eta >= eta_min with phi(eta) <= bound, for h >= 0: phi falls, so halve to the last bit."""
    if divergence(terms, eta_min) <= bound:
        return eta_min
    low = eta_min
    high = max(eta_min, math.sqrt(math.fsum(t.g**2 / t.m for t in terms) / (2 * bound)))
    while low < (middle := (low + high) / 2) < high:
        if divergence(terms, middle) > bound:
            low = middle
        else:
            high = middle
    return high


def published_multiplier(terms: Sequence[Term], bound: float, last: float) -> tuple[float, int]:
    """The authors' solver and the number of its halvings; `last` is the multiplier before, -1 at first."""
    low, high = (0.0, 10_000.0) if last < 0 else (last / 3, min(3 * last, 10_000.0))
    halvings = 0
    while high - low > 0.5:
        middle = (low + high) / 2
        excess = divergence(terms, middle) - bound
        if excess > 0:
            low = middle
        else:
            high = middle
        halvings += 1
        if abs(excess) < 0.1 * bound:
            break
    return (low + high) / 2, halvings


@dataclass
class Constraint:
    """What one multiplier did: its value, the KL of the means, and whether the bound held the step back."""

    eta: float
    kl: float
    active: bool


@dataclass
class Arturo:
    """The optimizer: groups of blocks (one list a tensor), each group with settings.

    Args:
        groups: blocks of numbers and their settings.
        solver: "newton" for the exact multiplier, "bisect" for the authors'.
        eta_min: least multiplier of the exact solver.
        scope: what shares a constraint: all blocks ("global"), those of a group, or each ("tensor") its own.
    """

    groups: Sequence[tuple[Sequence[Sequence[float]], Settings]]
    solver: str = "newton"
    eta_min: float = 0.0
    scope: str = "global"
    constraints: list[Constraint] = field(default_factory=list)
    eta: float = -1.0

    def __post_init__(self) -> None:
        self.weights = [[Weight(x, settings) for x in block] for blocks, settings in self.groups for block in blocks]
        self.owner = [i for i, (blocks, _) in enumerate(self.groups) for _ in blocks]

    @property
    def blocks(self) -> list[list[float]]:
        """The weights' values."""
        return [[w.x for w in block] for block in self.weights]

    def step(self, gradients: Sequence[Sequence[float] | None]) -> None:
        """One step; a block whose gradient is None takes no part in it."""
        shares: dict[int, list[Weight]] = {}
        for i, (block, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if gradient is None:
                continue
            for w, g in zip(block, gradient, strict=True):
                w.x *= 1 - w.settings.lr * w.settings.weight_decay
                w.observe(g)
            key = {"global": 0, "group": self.owner[i], "tensor": i}[self.scope]
            shares.setdefault(key, []).extend(block)
        self.constraints = [self._move(shares[key]) for key in sorted(shares)]
        for weights in shares.values():
            for w in weights:
                w.sharpen()

    def _move(self, weights: list[Weight]) -> Constraint:
        """Solve one constraint, the sum of KL/lr <= 1, in units of the largest lr, and take its step."""
        bound = max(w.settings.lr for w in weights)
        if bound == 0:
            return Constraint(self.eta_min, 0.0, False)
        moving = [w for w in weights if w.settings.lr > 0]
        terms = [Term(w.g, w.h, w.precision * bound / w.settings.lr) for w in moving]
        if self.solver == "bisect":
            eta, _ = published_multiplier(terms, bound, self.eta)
            self.eta = eta
        else:
            eta = exact_multiplier(terms, bound, self.eta_min)
        deltas = [t.delta(eta) for t in terms]
        kl = math.fsum(w.precision * d * d for w, d in zip(moving, deltas, strict=True)) / 2
        for w, d in zip(moving, deltas, strict=True):
            w.x += d
        return Constraint(eta, kl, eta > self.eta_min)
