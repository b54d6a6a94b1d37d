"""KOALA-V and KOALA-M (Davtyan et al., 2022) in plain Python: an extended Kalman filter on small matrices.

The state of one weight is (x) for KOALA-V and (x, velocity) for KOALA-M; all weights share one covariance P of that
size. Both methods are here one filter with other matrices F, Q, and P is carried by the matrix equations

    P <- F P F' + Q,        P <- P - P diag(max_i |h_i|^2 / S_i, 0) P

as printed, where the library has closed forms of its entries. A block is one tensor, as a list of floats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

Vector = list[float]
Matrix = list[list[float]]
Target = float | Callable[[float], float]

EPS = 1e-9
"""A block whose gradient is shorter than this is not updated."""


def matmul(a: Matrix, b: Matrix) -> Matrix:
    """Matrix product a b."""
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def transpose(a: Matrix) -> Matrix:
    """Matrix transpose a'."""
    return [list(row) for row in zip(*a, strict=True)]


def plus(a: Matrix, b: Matrix, factor: float = 1.0) -> Matrix:
    """Matrix sum a + factor b."""
    return [[x + factor * y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Inner product, summed without rounding error."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


class Koala:
    """What all KOALAs share: `blocks` of parameters, their innovations, and the measurement noise `R`.

    Args:
        blocks: the parameters, one list for each tensor.
        lr: factor on the innovation, one for all blocks or one each.
        r: measurement noise if fixed; None estimates it from the losses, from 1.0 on.
        alpha_r: share of the old estimate in the new one.
        weight_decay: one for all blocks or one each.
        target: the wanted loss, or a function of the loss that gives it.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[float]],
        lr: float | Sequence[float],
        *,
        r: float | None = None,
        alpha_r: float = 0.9,
        weight_decay: float | Sequence[float] = 0.0,
        target: Target = 0.0,
    ) -> None:
        count = len(blocks)
        self.blocks = [list(b) for b in blocks]
        self.lr = list(lr) if isinstance(lr, Sequence) else [lr] * count
        self.weight_decay = list(weight_decay) if isinstance(weight_decay, Sequence) else [weight_decay] * count
        self.r, self.alpha_r, self.R = r, alpha_r, 1.0 if r is None else r
        self.target = target

    def predict(self, moving: Sequence[bool] | None = None) -> None:
        """The filter's first stage; `moving` tells the blocks whose weights and velocities take part (default: all)."""

    def correct(self, i: int, g: Vector, h: Vector, innovation: float) -> None:
        """Correct block i by its gradient `g`, by `h`, which has the weight decay too, and by its innovation."""
        raise NotImplementedError

    def contract(self) -> None:
        """Correct a covariance that the blocks share, after all of them."""

    def update(self, loss: float, gradients: Sequence[Vector | None], loss_var: float | None = None) -> None:
        """The filter's second stage.

        Args:
            loss: mean loss of the batch at the predicted weights.
            gradients: its gradient, None for a block without one.
            loss_var: mean of the squared losses of the batch; None takes the square of `loss`.
        """
        loss_var = loss**2 if loss_var is None else loss_var
        target = self.target(loss) if callable(self.target) else self.target
        # mean (l - target)^2, from the first two moments of l
        second_moment = loss_var - 2 * target * loss + target**2
        if self.r is None:
            self.R = self.alpha_r * self.R + (1 - self.alpha_r) * second_moment

        for i, g in enumerate(gradients):
            if g is None or math.sqrt(dot(g, g)) < EPS:
                continue
            x, decay = self.blocks[i], self.weight_decay[i]
            h = [gj + decay * xj for gj, xj in zip(g, x, strict=True)]
            self.correct(i, g, h, loss - target + decay / 2 * dot(x, x))
        self.contract()

    def step(self, loss: float, gradients: Sequence[Vector | None], loss_var: float | None = None) -> None:
        """Update, then the prediction for the next step; a block without gradient takes part in neither."""
        self.update(loss, gradients, loss_var)
        self.predict([g is not None for g in gradients])


class Shared(Koala):
    """A KOALA whose weights all have the covariance `P`, 1x1 or 2x2, and the dynamics `F`.

    Args:
        P: covariance at the start.
        F: the dynamics, of the same size.
        raw_direction: move along the gradient without weight decay, as the authors' KOALA-V does.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[float]],
        lr: float | Sequence[float],
        *,
        P: Matrix,
        F: Matrix,
        raw_direction: bool = False,
        **measurement: Any,
    ) -> None:
        super().__init__(blocks, lr, **measurement)
        self.filtered = [list(b) for b in blocks]  # where the last prediction of each block set out
        self.velocity = [[0.0] * len(b) for b in blocks]
        self.P, self.F, self.raw_direction = P, F, raw_direction
        self.h_tilde = 0.0

    def process_noise(self) -> Matrix:
        """Q of the coming prediction."""
        raise NotImplementedError

    def predict(self, moving: Sequence[bool] | None = None) -> None:
        moves = [i for i in range(len(self.blocks)) if moving is None or moving[i]]
        for i in moves:
            self.filtered[i] = self.blocks[i]
        Q = self.process_noise()
        if len(self.P) == 2:
            for i in moves:
                self.blocks[i] = [x + v for x, v in zip(self.blocks[i], self.velocity[i], strict=True)]
                self.velocity[i] = [self.F[1][1] * v for v in self.velocity[i]]
        self.P = plus(matmul(matmul(self.F, self.P), transpose(self.F)), Q)

    def correct(self, i: int, g: Vector, h: Vector, innovation: float) -> None:
        S = self.P[0][0] * dot(h, h) + self.R
        change = [self.lr[i] * innovation * row[0] / S for row in self.P]
        direction = g if self.raw_direction else h
        self.blocks[i] = [x - change[0] * d for x, d in zip(self.blocks[i], direction, strict=True)]
        if len(self.P) == 2:
            self.velocity[i] = [v - change[1] * hj for v, hj in zip(self.velocity[i], h, strict=True)]
        self.h_tilde = max(self.h_tilde, dot(h, h) / S)

    def contract(self) -> None:
        size = range(len(self.P))
        D = [[self.h_tilde if i == j == 0 else 0.0 for j in size] for i in size]
        self.P = plus(self.P, matmul(matmul(self.P, D), self.P), -1.0)
        self.h_tilde = 0.0


class Vanilla(Shared):
    """KOALA-V: P is one number, F = 1, Q = q."""

    def __init__(
        self,
        blocks: Sequence[Sequence[float]],
        lr: float | Sequence[float] = 1.0,
        *,
        sigma: float = 1.0,
        q: float = 1.0,
        weight_decay_mode: str = "coupled",
        **measurement: Any,
    ) -> None:
        raw = weight_decay_mode == "reference"
        super().__init__(blocks, lr, P=[[sigma]], F=[[1.0]], raw_direction=raw, **measurement)
        self.q = q

    def process_noise(self) -> Matrix:
        return [[self.q]]


class Momentum(Shared):
    """KOALA-M: weight and velocity, F = [[1, 1], [0, a]], Q = diag(qx, qv) with an adaptive qx."""

    def __init__(
        self,
        blocks: Sequence[Sequence[float]],
        lr: float | Sequence[float] = 1.0,
        *,
        sw: float = 0.1,
        sc: float = 0.0,
        sv: float = 0.1,
        a: float = 0.9,
        qw: float = 1e-2,
        qv: float = 1e-2,
        q_rule: str = "reference",
        average_init: str = "params",
        **measurement: Any,
    ) -> None:
        super().__init__(blocks, lr, P=[[sw, sc], [sc, sv]], F=[[1.0, 1.0], [0.0, a]], **measurement)
        self.qx, self.qv, self.q_rule = qw, qv, q_rule
        self.average = [list(b) if average_init == "params" else [0.0] * len(b) for b in blocks]

    def process_noise(self) -> Matrix:
        apart = [a - x for A, X in zip(self.average, self.filtered, strict=True) for a, x in zip(A, X, strict=True)]
        if self.q_rule == "reference":
            self.qx = 0.9 * self.qx + 0.1 * math.sqrt(dot(apart, apart)) / len(apart)
        elif self.q_rule == "paper":
            self.qx = dot(apart, apart) / len(apart)
        return [[self.qx, 0.0], [0.0, self.qv]]

    def correct(self, i: int, g: Vector, h: Vector, innovation: float) -> None:
        super().correct(i, g, h, innovation)
        self.average[i] = [0.9 * a + 0.1 * x for a, x in zip(self.average[i], self.blocks[i], strict=True)]
