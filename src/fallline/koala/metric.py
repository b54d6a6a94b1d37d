"""KOALA along a direction: the metric chooses the direction, a Kalman filter of the loss the length of the step."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from .._group import Shared
from .._optimizer import Params
from .._settings import ClosedShare, NonNegative, Positive, Rate, RunSettings, Share
from .._shards import gathered, local, size
from .._shards import part as of_this_rank
from ..kernels import clean, dot, scalar_like, squared_norm, zeros_like
from .base import EPS, KOALA, TINY, KOALAGroup, Target

Metric = Literal["identity", "adam", "orthogonal"] | Callable[[Tensor], Tensor]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. (2024): they bring singular values to 0.7 ... 1.2, fast
ITERATIONS = 5
FAINT = 1e-19  # of the norm: the average of a dead unit. Squares below are subnormal, and those are slow on a CPU


def orthogonalized(h: Tensor) -> Tensor:
    """U V' of h = U S V', nearly: Newton-Schulz iteration on a matrix, [rows, all other dimensions].

    Times sqrt(rows / columns) where there are more rows than columns, which makes a step as long for the layer's
    outputs whatever its shape. Zeros remain zeros.
    """
    matrix = h.reshape(len(h), -1)
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)  # squares of small gradients vanish
    x = x / torch.linalg.vector_norm(x).clamp_min(1)
    x = hardshrink(x, FAINT)
    if h.is_cuda and h.dtype != torch.float64:
        x = x.bfloat16()  # products at full speed, which lose less than the iteration leaves
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.T if rows > columns else x
    stretch: float = max(1.0, rows / columns) ** 0.5
    return (x.to(h.dtype) * stretch).reshape(h.shape)


def ahead(g: Tensor, m: Tensor, unbias: Tensor, beta: float, ok: Tensor | None) -> Tensor:
    """h: the averaged gradient, in which the newest counts once more (Nesterov)."""
    h: Tensor = clean(g, ok).lerp(m * unbias.to(m.dtype), beta)  # whose product is double if a tensor is 0-D as well
    return h


def adam(h: Tensor, v: Tensor, unbias: Tensor, eps: float) -> Tensor:
    return h / ((v * unbias.to(v.dtype)).sqrt() + eps)


def average_(p: Tensor, g: Tensor, m: Tensor, *, share: Tensor, ok: Tensor | None) -> None:
    m.lerp_(clean(g, ok), share)


def average_twice_(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, *, share: Tensor, share2: Tensor, ok: Tensor | None
) -> None:
    g = clean(g, ok)
    m.lerp_(g, share)
    v.lerp_(g.square(), share2)


def length(p: Tensor, g: Tensor, m: Tensor, unbias: Tensor, *, beta: float, ok: Tensor | None) -> tuple[Tensor]:
    return (squared_norm(ahead(g, m, unbias, beta, ok)),)


def adam_slope(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    unbias: Tensor,
    v: Tensor,
    unbias2: Tensor,
    *,
    beta: float,
    eps: float,
    ok: Tensor | None,
) -> tuple[Tensor]:
    h = ahead(g, m, unbias, beta, ok)
    return (dot(h, adam(h, v, unbias2, eps)),)


def move_(
    p: Tensor, g: Tensor, m: Tensor, unbias: Tensor, *, distance: Tensor, shrink: Tensor, beta: float, ok: Tensor | None
) -> None:
    p.mul_(shrink).addcmul_(ahead(g, m, unbias, beta, ok), -distance)


def adam_move_(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    unbias: Tensor,
    v: Tensor,
    unbias2: Tensor,
    *,
    distance: Tensor,
    shrink: Tensor,
    beta: float,
    eps: float,
    ok: Tensor | None,
) -> None:
    p.mul_(shrink).addcmul_(adam(ahead(g, m, unbias, beta, ok), v, unbias2, eps), -distance)


def move_along_(p: Tensor, d: Tensor, *, distance: Tensor, shrink: Tensor) -> None:
    p.mul_(shrink).addcmul_(d, -distance)


class MetricGroup(KOALAGroup):
    """What a step reads of a group."""

    __slots__ = ()

    metric: Metric
    beta: float
    beta2: float
    eps: float
    measurement_noise: Tensor
    momentum: list[Tensor]
    second_moment: list[Tensor]  # of tensors in Adam's metric
    step: list[Tensor]


class Part(NamedTuple):
    """The tensors of a group whose directions are found in one way."""

    t: MetricGroup
    kind: str  # "adam", "identity", or "whole": from all of a tensor at a time


class Slope(NamedTuple):
    """What is known of a part's directions."""

    along: Tensor  # 0-D, the sum of <h, d>; of "identity" the sum of the squares of h
    unbias: Tensor  # [tensors]
    unbias2: Tensor | None = None
    directions: list[Tensor] | None = None  # of "whole"


class MetricKOALA(KOALA[MetricGroup]):
    r"""KOALA in a metric: the direction d comes from an averaged gradient h, the length of the step from the loss.

    Along d the loss falls by about :math:`n = \langle h, d \rangle` a unit, summed over the whole network. The filter's
    state is the way to go, one number; the loss measures it. Its variance follows :math:`P \leftarrow P + q`,
    :math:`P \leftarrow P R / (P n^2 + R)`, as KOALA-V's does, and is taken where that comes to rest:

    .. math:: s = n \sqrt{q / R}, \quad k = \frac{2 s}{s + \sqrt{s^2 + 4}}, \quad
              \theta \leftarrow \theta - \eta k \tfrac{L}{n} d

    with L the minibatch's loss above its target, R the running mean of its square, and k the filter's gain in [0, 1).
    Where s is small a step is :math:`\eta \sqrt q L / \sqrt R` long, about :math:`\eta \sqrt q` whatever the gradient;
    where s is large it is Polyak's, :math:`\eta L / n`. One loss an example or their mean: that is the same here.

    ========================  =======================================================================  =============
    metric                    d                                                                        n
    ========================  =======================================================================  =============
    ``"identity"``            h divided by its norm                                                    norm of h
    ``"adam"``                h / (sqrt(v) + eps), v the mean square of the gradient (Adam)            nearly L1 norm
    ``"orthogonal"``          matrices: c U V' of h = U S V' (Muon), nearly; kernels of convolutions   c nuclear norm
                              flattened to [out, rest]; all else in Adam's metric
    a callable                what it makes of h, all of a tensor at a time                            <h, d>
    ========================  =======================================================================  =============

    Here c is the root of rows / columns, or 1 where there are more columns than rows.

    Args:
        params: parameters or parameter groups; ``lr``, ``metric``, ``weight_decay``, ``beta``, ``beta2`` and ``eps``
            may differ between groups. What lies in a group with half the ``lr`` of another moves half as far.
        lr: multiplies the step; 1 asks for the target at once.
        metric: see above; a callable takes h, shaped like its parameter, and returns d of the same shape, finite where
            h is: ``skip_nonfinite`` looks at losses and gradients alone.
        q: process noise, the variance that is added each step; its root is the length of a usual step.
        r: measurement noise; None follows the square of the minibatch's loss, from the first one on.
        alpha_r: share of the old R in its running average, in [0, 1].
        beta: share of the old average in h, in [0, 1).
        beta2: the same of the mean square in Adam's metric.
        eps: added to its root.
        weight_decay: shrinks the weights by ``1 - lr * sqrt(q) * weight_decay`` each step, apart from the direction.
        measured: False leaves the loss out: every step has the length ``lr * sqrt(q)``.
        target, skip_nonfinite, maximize, stochastic_rounding, fused: as in :class:`VanillaKOALA`.

    State: the averaged gradient; where Adam's metric holds, the mean square too. A direction is held for every tensor
    that a callable or the orthogonalization takes, until the step is done. Sharded tensors are gathered for that,
    and every rank computes their directions.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse, or no loss is known.

    Reference: Davtyan et al., KOALA, AAAI 2022, arXiv 2107.03331, equations (31) and (36), along a direction. Kalata,
    The tracking index, 1984, for the gain at rest. Jordan et al., Muon, 2024. The combination is this library's own:
    docs/beyond.md has the evidence.

    Example:
        >>> import torch
        >>> from fallline import MetricKOALA
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = MetricKOALA([w], metric="adam")
        >>> for _ in range(300):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        >>> bool(w.detach().abs().max() < 1e-2)
        True
    """

    _whole = KOALA._whole | {"q", "measured"}
    _distance: Tensor | None = None  # of the last step

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        metric: Metric = "adam",
        q: NonNegative = 2.5e-3,
        r: NonNegative | None = None,
        alpha_r: ClosedShare = 0.9,
        beta: Share = 0.9,
        beta2: Share = 0.99,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.01,
        measured: bool = True,
        target: Target = "auto",
        **run: Unpack[RunSettings],
    ) -> None:
        way = dict(metric=metric, beta=beta, beta2=beta2, eps=eps, weight_decay=weight_decay, measured=measured)
        super().__init__(params, {**dict(lr=lr, q=q, r=r, alpha_r=alpha_r, target=target), **way}, **run)

    @property
    def distance(self) -> Tensor | None:
        """How far the last step went along the direction, 0-D tensor; None before the first. No part of checkpoints."""
        return self._distance

    # -- state ------------------------------------------------------------------------------------------------

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"momentum": zeros_like(p), "step": scalar_like(p)}
        if _kind(p, group["metric"]) == "adam":
            state["second_moment"] = zeros_like(p)
        return state

    def init_shared(self) -> dict[str, Any]:
        shared = super().init_shared()
        return shared if self.defaults["r"] is not None else {**shared, "measurement_noise": 0.0}

    def _listed(self, p: Tensor) -> tuple[str, ...]:
        return "momentum", "step"

    # -- the step ---------------------------------------------------------------------------------------------

    def _moments(self, like: Tensor, loss: Any, loss_var: Any = None) -> tuple[Tensor, Tensor] | None:
        known = super()._moments(like, loss, loss_var)
        if known is None:
            return None if self.param_groups[0]["measured"] else (torch.zeros_like(like), torch.zeros_like(like))
        mean, mean_square = known  # what is measured is the mean: how much the examples differ is not its noise
        return mean, mean.square() if loss_var is None else mean_square

    def _averaged(self, R: Tensor, measured: Tensor) -> Tensor:
        return torch.where(R > 0, super()._averaged(R, measured), measured)

    def _filter(
        self, groups: list[MetricGroup], shared: Shared, mean: Tensor, mean_square: Tensor, *, stepping: bool
    ) -> None:
        """One measurement of the whole network: average, take the slope along the direction, filter, move."""
        one = self.param_groups[0]
        innovation, new = self._innovation(shared, mean, mean_square)
        R, ok = new["measurement_noise"], None
        if one["skip_nonfinite"]:
            ok = (mean + mean_square + innovation + R).isfinite()
            if groups:
                ok = ok & self.finite(groups)
            shared.skipped.add_(~ok)

        parts = [part for t in groups for part in self._parts(t)]
        rates = [(torch.ones_like(mean) * t.lr).reshape(()) for t, _ in parts]
        largest = torch.stack(rates).amax() if rates else torch.ones_like(mean)
        shares = [torch.where(largest > 0, rate / largest, 1.0) for rate in rates]  # of the way that each part goes
        found = [self._slope(part, ok) for part in parts]
        slopes, squares = [torch.zeros_like(mean)], [torch.zeros_like(mean)]
        for part, slope, share in zip(parts, found, shares, strict=True):
            (squares if part.kind == "identity" else slopes).append(slope.along * share)
        norm = torch.stack(squares).sum().sqrt()
        n = torch.stack(slopes).sum() + norm

        distance = torch.ones_like(mean) * one["q"] ** 0.5
        if one["measured"]:
            scale = distance / R.clamp_min(TINY).sqrt()
            s = n * scale
            distance = torch.where(n > 0, 2 * innovation * scale / (s + (s.square() + 4).sqrt()), 0.0)
        usual = largest * one["q"] ** 0.5
        if ok is not None:
            distance, usual = torch.where(ok, distance, 0.0), torch.where(ok, usual, 0.0)
        self._distance = distance = largest * distance
        for part, slope, share in zip(parts, found, shares, strict=True):
            own = distance * share
            if part.kind == "identity":
                own = torch.where(norm >= EPS, own / norm, 0.0)
            self._walk(part, slope, own, 1 - usual * share * part.t.weight_decay, ok)
        self._learn(shared, new, ok)

    def _parts(self, t: MetricGroup) -> list[Part]:
        """The group by kinds of directions."""
        kinds = [_kind(p, t.metric) for p in t.owners]
        parts = []
        for kind in sorted(set(kinds)):

            def known(name: str, ts: list[Tensor], kind: str = kind) -> list[Tensor]:
                return self._as_known((t.index, kind, name), ts) if t.fused else ts

            mine = [i for i, other in enumerate(kinds) if other == kind]
            more: dict[str, list[Tensor]] = {}
            if kind == "adam":
                owners = [t.owners[i] for i in mine]
                real = not any(map(Tensor.is_complex, owners))
                more = {"second_moment": local([self.state[p]["second_moment"] for p in owners], real=real)}
            parts.append(Part(t.select(mine, known, **more), kind))
        return parts

    def _slope(self, part: Part, ok: Tensor | None) -> Slope:
        """Take the gradients into the averages, and the slope along the directions."""
        t, kind = part
        counted = torch.ones_like(t.measurement_noise) if ok is None else ok.to(t.measurement_noise)
        torch._foreach_add_(t.step, [counted.to(t.step[0].dtype)] * len(t.step))  # one for all is read on the host
        count = torch.stack(t.step).to(t.measurement_noise).clamp_min(1)
        unbias = 1 / (1 - t.beta**count)
        share = (1 - t.beta) * counted
        if kind == "adam":
            unbias2 = 1 / (1 - t.beta2**count)
            share2 = (1 - t.beta2) * counted
            self.each(average_twice_, t, t.grads, t.momentum, t.second_moment, share=share, share2=share2, ok=ok)
            lists = (t.grads, t.momentum, unbias, t.second_moment, unbias2)
            (each,) = self.sums(adam_slope, t, *lists, beta=t.beta, eps=t.eps, ok=ok)
            return Slope(each.sum(), unbias, unbias2)
        self.each(average_, t, t.grads, t.momentum, share=share, ok=ok)
        if kind == "identity":
            (each,) = self.sums(length, t, t.grads, t.momentum, unbias, beta=t.beta, ok=ok)
            return Slope(each.sum(), unbias)
        direction = t.metric if callable(t.metric) else orthogonalized
        directions, slopes = [], []
        for p, g, m, own in zip(t.owners, t.grads, t.momentum, unbias, strict=True):
            h = gathered(ahead(g.to(m.dtype), m, own, t.beta, ok), p)
            d = direction(h)
            slopes.append(dot(h, d))
            directions.append(of_this_rank(d, p))
        return Slope(torch.stack(slopes).to(t.measurement_noise).sum(), unbias, directions=directions)

    def _walk(self, part: Part, slope: Slope, distance: Tensor, shrink: Tensor, ok: Tensor | None) -> None:
        t, kind = part
        far = dict(distance=distance, shrink=shrink)
        if kind == "whole":
            self.each(move_along_, t, slope.directions, **far)
        elif kind == "adam":
            lists = (t.grads, t.momentum, slope.unbias, t.second_moment, slope.unbias2)
            self.each(adam_move_, t, *lists, beta=t.beta, eps=t.eps, ok=ok, **far)
        else:
            self.each(move_, t, t.grads, t.momentum, slope.unbias, beta=t.beta, ok=ok, **far)


class OrthogonalKOALA(MetricKOALA):
    r"""Muon's direction, and how far along it from the loss: :class:`MetricKOALA` with ``metric="orthogonal"``.

    Matrices are orthogonalized, the kernels of convolutions as matrices; biases, gains of norms and other vectors are
    in Adam's metric. Tune ``q`` first, then ``weight_decay``; ``lr`` is the schedule's. A group with
    ``metric="adam"`` keeps what is no linear map, such as embeddings, in Adam's metric.

    Args:
        params: as in :class:`MetricKOALA`, and so all others; only the default of ``metric`` differs.

    Example:
        >>> import torch
        >>> from fallline import OrthogonalKOALA
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.randn(64, 4), torch.randn(64, 3)
        >>> optimizer = OrthogonalKOALA(model.parameters())
        >>> losses = []
        >>> for _ in range(200):
        ...     loss = (model(x) - y).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        ...     losses.append(loss.item())
        >>> losses[-1] < 0.9 * losses[0]
        True
    """

    def __init__(self, params: Params, lr: Rate = 1.0, *, metric: Metric = "orthogonal", **settings: Any) -> None:
        super().__init__(params, lr, metric=metric, **settings)


def _kind(p: Tensor, metric: Metric) -> str:
    """How a tensor's direction is found: element by element in Adam's metric, as it is, or from all of it."""
    if metric == "orthogonal":
        return "whole" if p.ndim + p.is_complex() > 1 and 1 < len(p) < size(p) else "adam"
    return metric if isinstance(metric, str) else "whole"
