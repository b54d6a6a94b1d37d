"""KOALA++: no covariance, only its products with the gradients (Xia, Davtyan and Favaro, 2025)."""

from typing import Any, Unpack

import torch
from torch import Tensor

from .._group import Shared
from .._optimizer import Params
from .._settings import ClosedShare, NonNegative, Rate, RunSettings
from ..kernels import dot, scalar_like, squared_norm, zeros_like
from .base import Correction, KOALAGroup, Measurement, Target, TensorwiseKOALA, penalized


def products(p: Tensor, g: Tensor, v: Tensor, H: Tensor, *, weight_decay: float | None) -> tuple[Tensor, ...]:
    """Of the new gradient h with the last step's v and H; last the squared norms that weight decay asks for."""
    h = penalized(p, g, weight_decay)
    sums = squared_norm(h), dot(h, H), dot(h, v), squared_norm(H), dot(H, v)
    return sums if weight_decay is None else (*sums, squared_norm(g), squared_norm(p))


def correct_(
    p: Tensor,
    g: Tensor,
    v: Tensor,
    H: Tensor,
    of_v: Tensor,
    of_h: Tensor,
    of_H: Tensor,
    c: Tensor,
    treated: Tensor,
    *,
    q: float | Tensor,
    weight_decay: float | None,
    ok: Tensor | None,
) -> None:
    h = penalized(p, g, weight_decay, ok)
    v.mul_(of_v).addcmul_(h, of_h).addcmul_(H, of_H)
    p.addcmul_(v, -c).addcmul_(h, -q * c)
    H.lerp_(h, treated.to(H.dtype))


class ProductGroup(KOALAGroup):
    """What a step reads of a group."""

    __slots__ = ()

    sigma: float
    q: float
    symmetric: bool
    product: list[Tensor]
    gradient: list[Tensor]
    innovation_variance: list[Tensor]


class KOALAPlusPlus(TensorwiseKOALA[ProductGroup]):
    r"""KOALA++: each tensor's covariance P is known by :math:`v = H P`, its product with the gradient H.

    .. math:: v_k = (\alpha_k - \lambda_k) v_{k-1} + q (H_k - \lambda_k H_{k-1}) + w_k H_{k-1}, \quad
              S_k = H_k v_k^\top + q \|H_k\|^2 + R, \quad x \leftarrow x - \eta L (v_k + q H_k) / S_k

    is the filter with the covariance before last replaced by the matrix of least norm that is known to agree:
    :math:`\alpha_k = H_k H_{k-1}^\top / \|H_{k-1}\|^2`, :math:`\lambda_k = H_k (v_{k-1} + q H_{k-1})^\top / S_{k-1}`.
    Of the symmetric ones :math:`w_k = (H_k v_{k-1}^\top - \alpha_k H_{k-1} v_{k-1}^\top) / \|H_{k-1}\|^2`, of all
    :math:`w_k = 0`. Such a matrix may be indefinite: where it gives :math:`S_k < R`, which no covariance can, the step
    goes on with :math:`v_k = 0`. State: v and H. Nothing moves in ``predict``.

    Args:
        params: parameters or parameter groups; ``lr``, ``sigma``, ``q``, ``symmetric`` and ``weight_decay`` may differ.
        lr: multiplies the innovation, as in :class:`VanillaKOALA`.
        sigma: variance of the weights before the first step.
        q: process noise, added to the variance each step. With 0, a tensor whose v was set to 0 rests for good.
        symmetric: the least-norm matrix among the symmetric ones; False: among all (the paper's "vanilla").
        r, alpha_r, weight_decay, target: as in :class:`VanillaKOALA`, and so
            skip_nonfinite, maximize, stochastic_rounding, fused.

    The first gradient counts as measured twice, as in the authors' program: v starts as that of a virtual step before.
    Half-precision parameters keep float32 state.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse, or no loss is known.

    Reference: Xia, Davtyan and Favaro, KOALA++, NeurIPS 2025, arXiv 2506.04432, Algorithm 1.

    Example:
        >>> import torch
        >>> from fallline import KOALAPlusPlus
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = KOALAPlusPlus([w], sigma=0.1, q=0.1)
        >>> for _ in range(100):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        >>> bool(w.detach().abs().max() < 1e-2)
        True
    """

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        sigma: NonNegative = 1.0,
        q: NonNegative = 1.0,
        r: NonNegative | None = None,
        alpha_r: ClosedShare = 0.9,
        symmetric: bool = True,
        weight_decay: NonNegative = 0.0,
        target: Target = "auto",
        **run: Unpack[RunSettings],
    ) -> None:
        model = dict(lr=lr, sigma=sigma, q=q, r=r, alpha_r=alpha_r, symmetric=symmetric, target=target)
        super().__init__(params, {**model, "weight_decay": weight_decay}, **run)

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        # S is 0 until the first step
        return {"product": zeros_like(p), "gradient": zeros_like(p), "innovation_variance": scalar_like(p)}

    def _measure(self, t: ProductGroup, shared: Shared, R: Tensor) -> Measurement:
        q, decay = t.q, t.weight_decay or None
        stored = torch.stack(t.innovation_variance).to(R.dtype)
        hh, hH, hv, HH, Hv, *more = self.sums(products, t, t.grads, t.product, t.gradient, weight_decay=decay)
        g2, p2 = more or (hh, 0.0)

        # A tensor's first step takes its own gradient as the last one too: H = h, v = sigma h (a virtual measurement).
        first = stored == 0
        hH, hv = torch.where(first, hh, hH), torch.where(first, t.sigma * hh, hv)
        HH, Hv = torch.where(first, hh, HH), torch.where(first, t.sigma * hh, Hv)
        last_S = torch.where(first, (t.sigma + q) * hh + R, stored)

        inverse = torch.where(HH > 0, 1 / HH, 0.0)
        alpha, lam = hH * inverse, (hv + q * hH) / last_S
        w = (hv - alpha * Hv) * inverse if t.symmetric else 0.0
        of_v, of_h, of_H = alpha - lam, torch.full_like(alpha, q), w - q * lam
        S = of_v * hv + of_h * hh + of_H * hH + q * hh + R

        unlike = S < R  # no covariance gives this
        of_v, of_h, of_H = (torch.where(unlike, 0.0, x) for x in (of_v, of_h, of_H))
        S = torch.where(unlike, q * hh + R, S)
        of_h = torch.where(first, t.sigma * of_v + of_h + of_H, of_h)  # v and H, still 0, are multiples of h
        return Measurement(S, hh, g2, p2, own=(stored, of_v, of_h, of_H))

    def _correct(
        self, corrections: list[Correction[ProductGroup]], shared: Shared, ok: Tensor | None, *, drifting: bool
    ) -> None:
        for t, measured, treated, c in corrections:
            stored, *coefficients = measured.own
            torch._foreach_copy_(t.innovation_variance, torch.where(treated, measured.S, stored).unbind())
            # What is not treated keeps its v.
            of_v, of_h, of_H = (torch.where(treated, x, y) for x, y in zip(coefficients, (1.0, 0.0, 0.0), strict=True))
            lists = (t.grads, t.product, t.gradient, of_v, of_h, of_H, c, treated)
            self.each(correct_, t, *lists, q=t.q, weight_decay=t.weight_decay or None, ok=ok)
