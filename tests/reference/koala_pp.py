"""KOALA++ (Xia, Davtyan and Favaro, 2025) in plain Python, every matrix written out.

Of each block's covariance P only the product v = H P with the last gradient H is known. A step rebuilds the smallest
matrix that has this product, lets the filter of one scalar measurement pass over it,

    P <- (I - K H)(P + Q I),        v' = H' P,        S' = H' (v' + Q H')' + R,        K' = (v' + Q H')' / S',

and keeps of the result the product with the new gradient H' alone. The library has the scalars that come of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .koala import Koala, Matrix, Vector, dot, matmul, plus


def outer(a: Vector, b: Vector) -> Matrix:
    """Matrix a' b of two rows."""
    return [[x * y for y in b] for x in a]


def identity(n: int, factor: float = 1.0) -> Matrix:
    """factor I."""
    return [[factor if i == j else 0.0 for j in range(n)] for i in range(n)]


def least_norm(H: Vector, v: Vector, *, symmetric: bool) -> Matrix:
    """The matrix P with H P = v whose Frobenius norm is smallest, among all or among the symmetric ones.

    H = 0 has v = 0 and says nothing about P, which then is 0.
    """
    square = dot(H, H)
    if square == 0:
        return identity(len(H), 0.0)
    scale = 1 / square
    if not symmetric:
        return [[scale * x for x in row] for row in outer(H, v)]
    both = plus(outer(H, v), outer(v, H))
    return plus([[scale * x for x in row] for row in both], outer(H, H), -dot(H, v) * scale**2)


class Memory(NamedTuple):
    """What a block keeps of its last step: gradient H, product v = H P, innovation variance S."""

    H: Vector
    v: Vector
    S: float


class PlusPlus(Koala):
    """KOALA++. `memory` is None for blocks that had no gradient yet; `raw` lists every S before the safeguard.

    Args:
        sigma: variance of the weights before a virtual measurement that precedes a block's first gradient.
        q: process noise.
        symmetric: take P symmetric.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[float]],
        lr: float | Sequence[float] = 1.0,
        *,
        sigma: float = 1.0,
        q: float = 1.0,
        symmetric: bool = True,
        **measurement: Any,
    ) -> None:
        super().__init__(blocks, lr, **measurement)
        self.sigma, self.q, self.symmetric = sigma, q, symmetric
        self.memory: list[Memory | None] = [None] * len(self.blocks)
        self.raw: list[tuple[int, float]] = []

    def correct(self, i: int, g: Vector, h: Vector, innovation: float) -> None:
        memory = self.memory[i]
        if memory is None:
            memory = Memory(h, [self.sigma * x for x in h], (self.sigma + self.q) * dot(h, h) + self.R)
        H, v, S = memory
        eye = identity(len(h))
        K = [[(vj + self.q * Hj) / S] for vj, Hj in zip(v, H, strict=True)]
        P = plus(least_norm(H, v, symmetric=self.symmetric), eye, self.q)
        P = matmul(plus(eye, matmul(K, [H]), -1.0), P)

        [v] = matmul([h], P)
        S = dot(h, v) + self.q * dot(h, h) + self.R
        self.raw.append((i, S))
        if S < self.R:  # no covariance gives that: forget this one
            v, S = [0.0] * len(h), self.q * dot(h, h) + self.R
        self.memory[i] = Memory(h, v, S)
        change = self.lr[i] * innovation / S
        self.blocks[i] = [x - change * (vj + self.q * hj) for x, vj, hj in zip(self.blocks[i], v, h, strict=True)]
