"""arTuRO: weights as a Gaussian, each step bounded by a KL trust region (Dahlinger et al., 2023)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from .._group import Shared
from .._optimizer import Optimizer, Params
from .._settings import CountOrZero, NonNegative, Positive, Rate, Real, RunSettings, Share
from ..kernels import full_like, scalar_like, zeros_like
from . import _curvature
from ._trust_region import GaussianGroup, Moments, TrustRegion, join

PUBLISHED = {
    name: dict(lr=lr, reg_weight=kappa, measurement_noise=r, process_noise=q, weight_decay=decay)
    for names, lr, kappa, r, q, decay in (
        (("fashion-mnist-cnn", "fashion-mnist-resnet18"), 0.0856746, 0.0586566, 2.816791, 0.0173930, 1.5404e-6),
        (("cifar10-cnn", "cifar100-cnn"), 0.00278750, 0.296786, 1.219750, 0.00245526, 0.0),
        (("cifar10-resnet34",), 0.00713292, 1.597354, 9.328440, 0.0893810, 7.0291e-4),
        (("cifar100-resnet34",), 0.00723373, 1.676770, 4.822032, 0.00977875, 0.0),
    )
    for name in names
}


KERNELS = {
    "rls": (_curvature.rls_secular, _curvature.rls_move_),
    "second-moment": (_curvature.second_moment_secular, _curvature.second_moment_move_),
}


class ArTuRO(Optimizer[GaussianGroup]):
    r"""arTuRO: a quadratic model of the loss, minimized where moving a Gaussian of weights costs a bounded KL.

    Each weight :math:`\theta` is the mean of a Gaussian with precision :math:`\Lambda`; a Kalman filter of the
    gradient's intercept b and slope a, :math:`g \approx a \theta + b`, is its model of the loss. With
    :math:`\hat g = a \theta + b + \kappa \lambda_p \theta` and the curvature
    :math:`h = \max(a, \text{floor}) + \kappa \lambda_p`, a step solves

    .. math:: \min_\Delta \; \hat g^\top \Delta + \tfrac12 \Delta^\top h \Delta
              \quad \text{subject to} \quad \tfrac12 \Delta^\top \Lambda \Delta \le \epsilon

    over all weights at once: :math:`\Delta = -\hat g / (h + \eta \Lambda)` with one multiplier :math:`\eta`. It comes
    from three moments of the curvatures by Gauss-Radau quadrature, which never takes the KL divergence for smaller than
    it is; or, in more passes, from Newton's method on the secular equation. Then
    :math:`\Lambda \leftarrow (h + \nu \Lambda) / (\kappa + \nu)`, apart from the step and without a bound, as in the
    authors' program: what is bounded is the mean's part of the KL divergence alone. State: precision, slope, intercept
    and the filter's covariance p00, p01, p11 of (b, a), in float32 for half-precision parameters.

    With ``curvature="second-moment"`` the curvature is the root of Adam's second moment with its bias correction,
    :math:`h = \max(\sqrt{\hat v}, \text{floor}) + \kappa \lambda_p`, and the model of the gradient its intercept alone,
    :math:`\hat g = b + \kappa \lambda_p \theta`, begun with the first gradient: ``filter_var_init``,
    ``process_noise_quad``, ``curvature_init`` and ``intercept_init`` have no part in it. State: precision,
    second_moment, intercept, and two numbers a tensor. The precision comes to :math:`h / \kappa`, and so a step to
    Adam's direction at the length that the bound allows to all weights together,

    .. math:: \Delta = -\frac{\kappa}{\kappa + \eta} \frac{\hat g}{h}, \quad
              \frac{\kappa}{\kappa + \eta} = \min\Bigl(\frac{\kappa}{\kappa + \eta_{\min}},
              \sqrt{2 \epsilon \kappa} \, \bigl\| \hat g / \sqrt h \bigr\|^{-1}\Bigr).

    A root of squared gradients has the unit of a gradient and not of a Hessian. So a loss k times as large takes
    ``reg_weight`` and ``nu`` k times as large for the same path (or, but for the start, ``lr``: :math:`\epsilon \kappa`
    is in the loss's unit), and in other units of the weights no settings give the same path, as with Adam.

    Args:
        params: parameters or parameter groups; all settings but ``solver``, ``newton_iters``, ``eta_min``, ``scope``,
            ``skip_nonfinite`` and ``fused`` may differ between groups. Groups with different ``lr`` share one
            constraint: the sum of their KL / ``lr`` is at most 1.
        lr: the trust region's bound on the KL divergence of a step's mean, in nats; 0 is no step. The length of a step
            goes with its square root: the authors multiply it by 0.006 where others divide a learning rate by 10.
        reg_weight: :math:`\kappa`, weight of the KL divergence to the prior.
        prior_prec: :math:`\lambda_p`, precision of the prior; :math:`\kappa \lambda_p` acts as an L2 penalty.
        nu: :math:`\nu`, inertia of the precision.
        var_init: variance of the weights before the first step.
        filter_var_init: variance of intercept and slope before the first step.
        process_noise: added to the variance of the intercept each step; with ``measurement_noise`` it sets the memory.
        process_noise_quad: the same of the slope; None: as the intercept's.
        measurement_noise: variance of a gradient around the model. Only ratios of the three noises matter.
        curvature_init: slope before the first step.
        curvature_floor: smallest slope that counts as curvature, or root of a second moment.
        curvature: ``"rls"``, recursive least squares of the gradient on the weight, as published; ``"second-moment"``.
        beta2: of the second moment: the share of it that a step keeps.
        weight_decay: shrinks the weights by ``1 - lr * weight_decay`` before the step.
        solver: ``"newton"``, which keeps the bound; ``"bisect"``, the authors' loose bisection, which may exceed it.
        newton_iters: passes over the weights that refine the multiplier. The bound holds with any number; with one or
            more the whole of it is used, with 0 as a rule all but a few in ten thousand; with 4 or more it is exact.
        eta_min: smallest multiplier; 0.25 mimics the authors' program, which never comes to 0.
        intercept_init: from the first gradient g: ``"grad"``, b = g; ``"centred"``, b = g - a θ, a model that fits.
        scope: ``"global"``; ``"group"`` and ``"tensor"`` bound each by itself, which is another method.
        skip_nonfinite: turn a step with a non-finite gradient into nothing.
        maximize: ascend.
        stochastic_rounding: round bfloat16 parameters up or down, in expectation to what was computed; else to nearest.
        fused: one pass over all elements in compiled code: needs a C compiler, on a GPU Triton.

    The scale of the loss matters: gradients must be unscaled, and averaged rather than summed.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse.

    Reference: Dahlinger, Becker, Hüttenrauch and Neumann, arTuRO, OPT 2023, arXiv 2310.20574.

    Example:
        >>> import torch
        >>> from fallline import ArTuRO
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ArTuRO([w], lr=0.01)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> bool(w.detach().abs().max() < 1e-2), bool(optimizer.kl <= 0.01)
        (True, True)
    """

    _whole = Optimizer._whole | {"curvature", "solver", "newton_iters", "eta_min", "scope"}
    _run_defaults = {"skip_nonfinite": True}
    _solution: tuple[Tensor, Tensor] | None = None  # eta and KL of the last step, one number a constraint

    def __init__(
        self,
        params: Params,
        lr: Rate = 2.8e-3,
        *,
        reg_weight: NonNegative = 0.3,
        prior_prec: NonNegative = 0.0015,
        nu: NonNegative = 1.3,
        var_init: Positive = 0.01,
        filter_var_init: NonNegative = 5e-5,
        process_noise: NonNegative = 2.5e-3,
        process_noise_quad: NonNegative | None = None,
        measurement_noise: Positive = 1.22,
        curvature_init: Real = 0.1,
        curvature_floor: Annotated[float, "[-inf, inf)"] = 0.0,
        curvature: Literal["rls", "second-moment"] = "rls",
        beta2: Share = 0.999,
        weight_decay: NonNegative = 0.0,
        solver: Literal["newton", "bisect"] = "newton",
        newton_iters: CountOrZero = 0,
        eta_min: NonNegative = 0.0,
        intercept_init: Literal["grad", "centred"] = "grad",
        scope: Literal["global", "group", "tensor"] = "global",
        **run: Unpack[RunSettings],
    ) -> None:
        settings: dict[str, Any] = dict(
            lr=lr,
            reg_weight=reg_weight,
            prior_prec=prior_prec,
            nu=nu,
            var_init=var_init,
            filter_var_init=filter_var_init,
            process_noise=process_noise,
            process_noise_quad=process_noise_quad,
            measurement_noise=measurement_noise,
            curvature_init=curvature_init,
            curvature_floor=curvature_floor,
            curvature=curvature,
            beta2=beta2,
            weight_decay=weight_decay,
            solver=solver,
            newton_iters=newton_iters,
            eta_min=eta_min,
            intercept_init=intercept_init,
            scope=scope,
        )
        super().__init__(params, settings, **run)

    @staticmethod
    def published(name: str) -> dict[str, float]:
        """Settings of an experiment in the authors' program: ``ArTuRO(params, **ArTuRO.published("cifar10-cnn"))``.

        Raises:
            ValueError: no such experiment; the message has their names.
        """
        if name not in PUBLISHED:
            raise ValueError(f"no published setting {name!r}: one of {', '.join(PUBLISHED)}")
        return dict(PUBLISHED[name])

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check(settings)
        kappa, nu, floor = settings["reg_weight"], settings["nu"], settings["curvature_floor"]
        if kappa + nu == 0:
            raise ValueError(f"nu={nu!r} is outside its range: a number in (0, inf) where reg_weight is 0")
        if settings["newton_iters"] != int(settings["newton_iters"]):
            raise ValueError(f"newton_iters={settings['newton_iters']!r} is outside its range: a whole number")
        if settings["solver"] == "bisect" and settings["scope"] != "global":
            raise ValueError(f"scope={settings['scope']!r} is unknown with solver='bisect': one of 'global'")
        least = -kappa * settings["prior_prec"]
        if settings["solver"] == "newton" and floor < least:
            raise ValueError(f"curvature_floor={floor!r} is outside its range: a number in [{least!r}, inf)")

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        precision, intercept = full_like(p, 1 / group["var_init"]), zeros_like(p)
        if group["curvature"] == "second-moment":
            return {
                "precision": precision,
                "second_moment": zeros_like(p),
                "intercept": intercept,
                "p00": scalar_like(p),
                "seen": scalar_like(p),
            }
        return {
            "precision": precision,
            "slope": full_like(p, group["curvature_init"]),
            "intercept": intercept,
            "p00": full_like(p, group["filter_var_init"]),
            "p01": zeros_like(p),
            "p11": full_like(p, group["filter_var_init"]),
            "started": scalar_like(p),
        }

    def init_shared(self) -> dict[str, Any]:
        return {"multiplier": -1.0}  # the bisection starts from the last one

    def advance(self, groups: list[GaussianGroup], shared: Shared, loss: Any) -> None:
        ok = self.finite(groups) if groups[0].skip_nonfinite else None
        one = groups[0]
        by_moments = one.solver == "newton" and not one.newton_iters
        secular, move_ = KERNELS[one.curvature]
        models = [_model(t, None if ok is None else ok.to(shared.multiplier.dtype)) for t in groups]
        sums = []
        for t, model in zip(groups, models, strict=True):
            per_radius = torch.ones_like(shared.multiplier).mul(2 * t.lr).rsqrt()
            observe = self._regress if one.curvature == "rls" else self._average
            sums.append(observe(t, ok, per_radius, less=0.0 if by_moments else 1.0, **model.scalars))

        region = TrustRegion(groups, one.scope, squared=by_moments)

        def at(own: Tensor) -> tuple[Tensor, Tensor]:
            parts = zip(groups, models, own.split(region.sizes), strict=True)
            rows = [self.sums(secular, t, *model.lists, part, **model.scalars) for t, model, part in parts]
            squares, cubes = map(join, zip(*rows, strict=True))
            return squares, cubes

        moments = Moments(*map(join, zip(*sums, strict=True)))
        if one.solver == "bisect":
            eta, scale = region.bisect(at, shared.multiplier, one.eta_min)
        elif by_moments:
            eta, scale = region.by_moments(moments, one.eta_min)
        else:
            eta, scale = region.newton(at, region.below(moments), int(one.newton_iters) - 1, one.eta_min)
        if ok is not None:
            shared.skipped.add_(~ok)
            scale = torch.where(ok, scale, 0.0)

        squares: list[Tensor] = []
        steps = zip(groups, models, region.own(eta).split(region.sizes), scale.split(region.sizes), strict=True)
        for t, model, own, by in steps:
            scalars = dict(kappa=t.reg_weight, nu=t.nu, ok=ok, **model.scalars)
            squares += self.sums(move_, t, *model.lists, own, by, **scalars)
        multiplier = eta.amax()
        shared.multiplier.copy_(multiplier if ok is None else torch.where(ok, multiplier, shared.multiplier))
        self._solution = region.each(eta), region.each(region.over(torch.sum, join(squares) / 2))

    def _regress(self, t: GaussianGroup, ok: Tensor | None, per_radius: Tensor, **scalars: Any) -> tuple[Tensor, ...]:
        """Slope and intercept learn from the gradient."""
        quad = t.process_noise if t.process_noise_quad is None else t.process_noise_quad
        scalars |= dict(q=t.process_noise, q_quad=quad, r=t.measurement_noise, ok=ok, per_radius=per_radius)
        start = t.curvature_init if t.intercept_init == "centred" else None
        state = (t.precision, t.slope, t.intercept, t.p00, t.p01, t.p11, t.started)
        sums = self.sums(_curvature.rls_observe_, t, t.grads, *state, maxima=3, start=start, **scalars)
        had = torch.stack(t.started)
        now = torch.ones_like(had) if ok is None else had.maximum(ok.to(had.dtype))
        torch._foreach_copy_(t.started, now.unbind())
        return sums

    def _average(self, t: GaussianGroup, ok: Tensor | None, per_radius: Tensor, **scalars: Any) -> tuple[Tensor, ...]:
        """Second moment and intercept learn from the gradient.

        The first gradient is all that is known of its mean: gain 1, variance r. With W <- 1 + beta2 W, in ``seen``,
        1 / W is the newest square's share of Adam's corrected average, (1 - beta2) / (1 - beta2^t).
        """
        p00, seen = (torch.stack(own).to(per_radius.dtype) for own in (t.p00, t.seen))
        predicted = p00 + t.process_noise
        gain = torch.where(seen > 0, predicted / (predicted + t.measurement_noise), 1.0)
        new = gain * t.measurement_noise, seen * t.beta2 + 1
        for states, old, value in zip((t.p00, t.seen), (p00, seen), new, strict=True):
            torch._foreach_copy_(states, (value if ok is None else torch.where(ok, value, old)).unbind())
        share = 1 / new[1]
        if ok is not None:
            gain, share = gain * ok, share * ok
        lists = (t.grads, t.precision, t.second_moment, t.intercept, gain, share)
        scalars |= dict(ok=ok, per_radius=per_radius)
        return self.sums(_curvature.second_moment_observe_, t, *lists, maxima=3, **scalars)

    # -- readings: what the last step found, one number a constraint: 0-D, or [groups] or [tensors] with ``scope`` ----

    @property
    def eta(self) -> Tensor:
        """Multiplier of the last step, in units of the largest bound; NaN before the first."""
        return self._reading(0)

    @property
    def kl(self) -> Tensor:
        """KL divergence of the last step, the mean's part, in nats: at most the largest bound; 0 of a skipped step."""
        return self._reading(1)

    @property
    def active(self) -> Tensor:
        """Whether the bound was active in the last step."""
        eta_min: float = self.param_groups[0]["eta_min"]
        return self.eta > eta_min

    @property
    @torch.no_grad()
    def curvature(self) -> Tensor:
        """Median of the curvatures h of all weights, or of those on this rank: 0-D tensor. One pass and a sort."""
        curvatures = []
        for t in self._groups(lambda p: p in self.state):
            own = t.slope if t.curvature == "rls" else [v.sqrt() for v in t.second_moment]
            curvatures += [(a.clamp_min(t.curvature_floor) + t.reg_weight * t.prior_prec).flatten() for a in own]
        return torch.cat(curvatures).median()

    def _reading(self, i: int) -> Tensor:
        if self._solution is not None:
            return self._solution[i]
        missing: Tensor = self.param_groups[0]["multiplier"].new_full((), torch.nan)
        return missing


class Model(NamedTuple):
    """A group's model of the loss, as every kernel takes it."""

    lists: Sequence[list[Tensor]]  # precision, curvature, intercept
    scalars: dict[str, Any]


def _model(t: GaussianGroup, move: Tensor | None) -> Model:
    """``move`` is 0 where the step is skipped, else 1."""
    shrink = None
    if t.weight_decay:
        decay = t.lr * t.weight_decay
        shrink = 1 - (decay if move is None else move * decay)
    lists = (t.precision, t.slope if t.curvature == "rls" else t.second_moment, t.intercept)
    return Model(lists, dict(shrink=shrink, c=t.reg_weight * t.prior_prec, floor=t.curvature_floor))
