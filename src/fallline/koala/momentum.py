"""KOALA-M: weights and velocities, with a 2x2 covariance (Davtyan et al., 2022)."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .._group import Shared
from .._optimizer import Params
from .._settings import ClosedShare, NonNegative, Rate, Real, RunSettings
from .._shards import size
from ..kernels import squared_norm, zeros_like
from .base import Correction, KOALAGroup, Target, TensorwiseKOALA, penalized

AVERAGING = 0.1  # of the mean weights and of their process noise (the authors' 1 - 0.9)


def correct_and_drift_(
    p: Tensor,
    g: Tensor,
    v: Tensor,
    gain_x: Tensor,
    gain_v: Tensor,
    average: Tensor | None = None,
    share: Tensor | None = None,
    *,
    weight_decay: float | None,
    a: float | Tensor,
    move: Tensor | None,
    ok: Tensor | None,
) -> tuple[Tensor, ...]:
    h = penalized(p, g, weight_decay, ok)
    v.mul_(a).addcmul_(h, -gain_v)  # a is the last prediction's: stored undecayed, the velocity takes x - v back to x
    p.addcmul_(h, -gain_x)
    sums = []
    if average is not None and share is not None:
        average.lerp_(p, share.to(p.dtype))
        sums = [squared_norm(average - p)]
    if move is not None:
        p.addcmul_(v, move)
    return tuple(sums)


def drift_(p: Tensor, v: Tensor) -> None:
    p.add_(v)


def retreat_(p: Tensor, v: Tensor) -> None:
    p.sub_(v)


def decay_(p: Tensor, v: Tensor, *, a: float) -> None:
    v.mul_(a)


def squared_distance(p: Tensor, v: Tensor, average: Tensor, *, drifted: float) -> tuple[Tensor]:
    return (squared_norm(average - (p - drifted * v)),)


class MomentumGroup(KOALAGroup):
    """What a step reads of a group."""

    __slots__ = ()

    velocity: list[Tensor]
    average: list[Tensor]


class MomentumKOALA(TensorwiseKOALA[MomentumGroup]):
    r"""KOALA-M: weights and velocities are the state, a 2x2 matrix P stands for their covariance.

    .. math:: x \leftarrow x + v, \; v \leftarrow a v, \; P \leftarrow F P F^\top + Q; \quad
              S_i = P_{11} \|h_i\|^2 + R, \; x_i \leftarrow x_i - \eta L_i \tfrac{P_{11}}{S_i} h_i, \;
              v_i \leftarrow v_i - \eta L_i \tfrac{P_{12}}{S_i} h_i, \;
              P \leftarrow P - P \,\mathrm{diag}(\tilde h, 0)\, P

    with :math:`F = \bigl(\begin{smallmatrix} 1 & 1 \\ 0 & a \end{smallmatrix}\bigr)`,
    :math:`\tilde h = \max_i \|h_i\|^2 / S_i`. State: velocity, and unless ``q_rule="fixed"`` the average weights.

    Args:
        params: parameters or parameter groups; ``lr`` and ``weight_decay`` may differ between groups.
        lr: multiplies the innovation, as in :class:`VanillaKOALA`.
        sw, sc, sv: variance of the weights, covariance with the velocities, variance of the velocities at the start.
        a: decay of the velocity, in [0, 1].
        qw, qv: process noise of weights (at the start) and velocities.
        r, alpha_r, weight_decay, target: as in :class:`VanillaKOALA`, and so
            skip_nonfinite, maximize, stochastic_rounding, fused.
        q_rule: process noise of the weights from the distance d of the weights to their running average, n of them:
            ``"reference"`` averages d / n as the authors' program does, ``"paper"`` takes d² / n, ``"fixed"`` keeps
            ``qw``.
        average_init: ``"params"``, or ``"zeros"`` as in the authors' program.

    ``step`` leaves the parameters at the predicted point; ``posterior()`` visits the filtered one. A parameter without
    gradient gets neither update nor prediction in ``step``. Half-precision parameters keep float32 state.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse, no loss is known, or ``predict`` did not follow ``update``.

    Reference: Davtyan et al., KOALA, AAAI 2022, arXiv 2107.03331, supplement Algorithm 2, equations (49) to (63).

    Example:
        >>> import torch
        >>> from fallline import MomentumKOALA
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = MomentumKOALA([w])
        >>> for _ in range(200):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        >>> with optimizer.posterior():
        ...     bool(w.detach().abs().max() < 0.1)
        True
    """

    _whole = TensorwiseKOALA._whole | {"sw", "sc", "sv", "a", "qw", "qv", "q_rule", "average_init"}
    _words = TensorwiseKOALA._words | {"evaluating": (False, True)}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        sw: NonNegative = 0.1,
        sc: Real = 0.0,
        sv: NonNegative = 0.1,
        a: ClosedShare = 0.9,
        qw: NonNegative = 1e-2,
        qv: NonNegative = 1e-2,
        r: NonNegative | None = None,
        alpha_r: ClosedShare = 0.9,
        weight_decay: NonNegative = 0.0,
        q_rule: Literal["reference", "paper", "fixed"] = "reference",
        average_init: Literal["params", "zeros"] = "params",
        target: Target = "auto",
        **run: Unpack[RunSettings],
    ) -> None:
        model = dict(lr=lr, sw=sw, sc=sc, sv=sv, a=a, qw=qw, qv=qv, r=r, alpha_r=alpha_r, target=target)
        rules = dict(weight_decay=weight_decay, q_rule=q_rule, average_init=average_init)
        super().__init__(params, {**model, **rules}, **run)

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check(settings)
        sw, sc, sv = (settings[name] for name in ("sw", "sc", "sv"))
        if sc * sc > sw * sv:
            raise ValueError(f"sc={sc!r} is outside its range: a number with sc² <= sw sv = {sw * sv!r}")

    @property
    def covariance(self) -> Tensor:
        """P of weight and velocity: [2, 2] tensor; the predicted one, except between ``update`` and ``predict``."""
        s = self._shared()
        return torch.stack([s.p11, s.p12, s.p12, s.p22]).reshape(2, 2)

    @property
    def process_noise(self) -> Tensor:
        """The weights' process noise: 0-D tensor."""
        qx: Tensor = self.param_groups[0]["process_noise"]
        return qx

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"velocity": zeros_like(p)}
        if group["q_rule"] != "fixed":
            state["average"] = zeros_like(p)
            if group["average_init"] == "params":
                state["average"].copy_(p.detach())
        return state

    def _wanted(self, p: Tensor, group: dict[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        wanted, _ = super()._wanted(p, group, state)
        return wanted, {"predicted": p}  # a checkpoint of the filtered point

    def _listed(self, p: Tensor) -> Iterable[str]:
        return [name for name in self.state[p] if name != "predicted"]  # a parameter that thaws meanwhile has none

    def init_shared(self) -> dict[str, Any]:
        d = self.defaults
        start = {"p11": d["sw"], "p12": d["sc"], "p22": d["sv"], "process_noise": d["qw"], "spread": 0.0}
        return {**{name: float(value) for name, value in start.items()}, **super().init_shared()}

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self.defaults["average_init"] == "zeros" and self.defaults["q_rule"] != "fixed":
            new = set(self.param_groups[-1]["params"])
            for t in self._groups(lambda p: p in new and p in self.state):
                self._shared().spread.add_(self._squared_distances([t], drifted=1.0)[0].sum())

    def _predict(self) -> None:
        for t in self._groups(lambda p: p in self.state):
            self.each(drift_, t, t.velocity)
        super()._predict()

    def _variance(self, shared: Shared) -> Tensor:
        return shared.p11

    def _predict_covariance(self, shared: Shared, ok: Tensor | None = None) -> None:
        one = self.param_groups[0]
        a, p11, p12, p22, qx = one["a"], shared.p11, shared.p12, shared.p22, shared.process_noise
        new_qx = qx
        if one["q_rule"] != "fixed":
            params = {p: None for group in self.param_groups for p in group["params"]}
            n = sum(size(p) for p in params if p.requires_grad and not is_lazy(p))
            n = max(n, 1)  # all may be frozen as yet
            averaged = qx.lerp(shared.spread.sqrt() / n, AVERAGING)
            new_qx = averaged if one["q_rule"] == "reference" else shared.spread / n
        new = (p11 + 2 * p12 + p22 + new_qx, a * (p12 + p22), a * a * p22 + one["qv"], new_qx)
        for old, value in zip((p11, p12, p22, qx), new, strict=True):
            old.copy_(value if ok is None else torch.where(ok, value, old))

    def _correct(
        self, corrections: list[Correction[MomentumGroup]], shared: Shared, ok: Tensor | None, *, drifting: bool
    ) -> None:
        contraction, m = self._contraction(corrections, shared)
        decay, move = self.param_groups[0]["a"], torch.ones_like(contraction) if drifting else None
        if drifting and ok is not None:  # a skipped step does not decay either; a failed update stays predicted
            decay, move = torch.where(ok, decay, torch.ones_like(contraction)), ok.to(contraction.dtype)
        rest = self._groups(lambda p: p.grad is None and p in self.state)
        if not drifting:  # predict() moved all parameters that have a velocity
            for t in rest:
                self.each(decay_, t, t.velocity, a=decay)

        adaptive = self.param_groups[0]["q_rule"] != "fixed"
        squared_distances: list[Tensor] = []
        for t, _, treated, c in corrections:
            lists = [t.grads, t.velocity, c * shared.p11, c * shared.p12]
            scalars = dict(weight_decay=t.weight_decay or None, a=decay, move=move, ok=ok)
            if adaptive:
                lists += [t.average, AVERAGING * treated.to(contraction.dtype)]
                squared_distances += self.sums(correct_and_drift_, t, *lists, **scalars)
            else:
                self.each(correct_and_drift_, t, *lists, **scalars)
        if adaptive:
            squared_distances += self._squared_distances(rest, drifted=1.0 if drifting else 0.0)
            total = torch.cat(squared_distances).sum() if squared_distances else shared.spread
            shared.spread.copy_(torch.where(ok, total, shared.spread) if drifting and ok is not None else total)

        S = shared.p11 * m + shared.measurement_noise
        shared.p22.sub_(torch.where(m > 0, shared.p12.square() * m / S, 0.0))
        shared.p12.mul_(contraction)
        shared.p11.mul_(contraction)

    def _squared_distances(self, groups: list[MomentumGroup], drifted: float) -> list[Tensor]:
        """Squared distance of each filtered tensor to its running average; ``drifted`` is 1 at the predicted point."""
        return [self.sums(squared_distance, t, t.velocity, t.average, drifted=drifted)[0] for t in groups]

    @torch.no_grad()
    def eval(self) -> None:
        """Move the parameters to the filtered point x - v, for evaluation or saving; ``train()`` comes back exactly.

        Keeps a copy of the parameters in the optimizer's state, also in a checkpoint that is saved meanwhile.
        """
        if self.param_groups[0]["stage"] == "filtered" or self.param_groups[0]["evaluating"] or self._foreign:
            return
        for p, state in self.state.items():
            state["predicted"] = p.detach().clone()
        for t in self._groups(lambda p: p in self.state):
            self.each(retreat_, t, t.velocity)
        self._share(evaluating=True)

    @torch.no_grad()
    def train(self) -> None:
        if self.param_groups[0]["evaluating"]:
            # A checkpoint's loader may not bring the copies; parameters that joined meanwhile have a velocity of zero.
            for t in self._groups(lambda p: p in self.state and "predicted" not in self.state[p]):
                self.each(drift_, t, t.velocity)
            for p, state in self.state.items():
                if "predicted" in state:
                    p.copy_(state.pop("predicted"))
            self._share(evaluating=False)
