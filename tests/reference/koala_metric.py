"""KOALA in a metric, in numpy: all tensors are one block, and the filter's variance is that at rest.

Of the rounds P <- P + q, k = P n^2 / (P n^2 + R), P <- P (1 - k) it is the predicted P that comes again. Averages are
taken over all gradients so far, and Newton-Schulz acts on the singular values themselves.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WHOLE = ("q", "r", "alpha_r", "beta", "beta2", "eps", "measured", "target", "maximize")
"""The settings that are one for all tensors here."""

EPS = 1e-9
"""An averaged gradient shorter than this has no direction."""

Rule = str | Callable[[Array], Array]


def newton_schulz(matrix: Array) -> Array:
    """Nearly U V' of U S V': an odd polynomial of degree 5, five times, as it acts on the singular values."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    s = s / max(float(np.sqrt(np.sum(s**2))), 1e-300)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    orthogonal: Array = (u * s) @ vh
    return orthogonal


def orthogonal(h: Array) -> Array:
    """The same of a tensor as the matrix [first dimension, all others]; tall ones are longer."""
    matrix = h.reshape(h.shape[0], -1)
    rows, columns = matrix.shape
    return (newton_schulz(matrix) * max(1.0, rows / columns) ** 0.5).reshape(h.shape)


def gain_at_rest(n: float, q: float, R: float) -> float:
    """Of a scalar filter that measures n times its state, of which each round adds q to the variance."""
    if n == 0 or q == 0:
        return 0.0
    P = q / 2 + math.hypot(q / 2, math.sqrt(q) * math.sqrt(R) / n)  # P^2 - q P = q R / n^2
    return P / (P + R / n**2)


class MetricKoala:
    """`tensors` and what is known of each; settings as lists are one for each tensor."""

    def __init__(
        self,
        tensors: Sequence[Array],
        lr: Sequence[float],
        metric: Sequence[Rule],
        *,
        weight_decay: Sequence[float],
        q: float,
        r: float | None,
        alpha_r: float,
        beta: float,
        beta2: float,
        eps: float,
        measured: bool,
        target: float | Callable[[float], float],
        maximize: bool,
    ) -> None:
        self.tensors = [t.copy() for t in tensors]
        self.lr, self.metric, self.weight_decay = lr, metric, weight_decay
        self.q, self.r, self.alpha_r, self.beta, self.beta2, self.eps = q, r, alpha_r, beta, beta2, eps
        self.measured, self.target, self.maximize = measured, target, maximize
        self.history: list[list[Array]] = [[] for _ in tensors]
        self.R, self.distance = r, 0.0

    def average(self, values: Sequence[Array], beta: float) -> Array:
        """Mean of all values so far, the older the less."""
        weights = np.array([beta**age for age in reversed(range(len(values)))])
        mean: Array = np.tensordot(weights / weights.sum(), np.stack(values), axes=1)
        return mean

    def direction(self, i: int, h: Array) -> Array:
        """Of tensor i; `"identity"` has that of all in `step`."""
        rule = self.metric[i]
        if callable(rule):
            return rule(h)
        matrix = h.ndim > 1 and min(h.shape[0], h.size // h.shape[0]) > 1
        if rule == "orthogonal" and matrix:
            return orthogonal(h)
        squares = [g**2 for g in self.history[i]]
        return h / (np.sqrt(self.average(squares, self.beta2)) + self.eps)

    def step(self, losses: Array, gradients: Sequence[Array | None]) -> None:
        """One step by the losses of a batch; what is not finite is no step."""
        known: list[tuple[int, Array]] = [(i, g) for i, g in enumerate(gradients) if g is not None]
        if not (np.isfinite(losses).all() and all(np.isfinite(g).all() for _, g in known)):
            return
        mean = float(losses.mean())
        target = self.target(mean) if callable(self.target) else self.target
        above = target - mean if self.maximize else mean - target
        if self.r is None:
            square = (mean - target) ** 2
            self.R = square if self.R is None else self.alpha_r * self.R + (1 - self.alpha_r) * square
        assert self.R is not None

        top = max((self.lr[i] for i, _ in known), default=0.0)
        shares = {i: self.lr[i] / top if top else 1.0 for i, _ in known}
        moves: dict[int, Array] = {}
        plain: dict[int, Array] = {}
        slope = 0.0
        for i, gradient in known:
            g = -gradient if self.maximize else gradient
            self.history[i].append(g)
            h = (1 - self.beta) * g + self.beta * self.average(self.history[i], self.beta)
            if self.metric[i] == "identity":
                plain[i] = h
            else:
                moves[i] = self.direction(i, h)
                slope += shares[i] * float(np.sum(h * moves[i]))
        length = float(np.sqrt(sum(shares[i] * float(np.sum(h**2)) for i, h in plain.items())))
        moves |= {i: h / length if length >= EPS else 0 * h for i, h in plain.items()}
        slope += length

        self.distance = top * self.q**0.5
        if self.measured:
            self.distance = top * gain_at_rest(slope, self.q, self.R) * above / (slope or 1.0)
        for i, d in moves.items():
            shrink = 1 - self.lr[i] * self.q**0.5 * self.weight_decay[i]
            self.tensors[i] = shrink * self.tensors[i] - self.distance * shares[i] * d
