"""CoolMomentum: Langevin dynamics with simulated annealing (Borysenko and Byshkin, 2021)."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Unpack

import torch
from torch import Tensor

from ._group import Group, Shared
from ._optimizer import Optimizer, Params
from ._settings import NonNegative, Rate, RunSettings, Share
from ._shards import size
from .kernels import clean, squared_norms, zeros_like

BELOW_ONE = 1 - 2**-24  # the largest momentum that a callable schedule may give


def cool_(
    p: Tensor,
    g: Tensor,
    d: Tensor,
    *,
    rho: Tensor,
    a: Tensor,
    coupled: Tensor | None,
    shrink: float | Tensor | None,
    move: Tensor | None,
    ok: Tensor | None,
) -> None:
    """d <- rho d - a (g + wd p), p <- p + d; ``coupled`` is a wd, ``move`` is 0 where the step is skipped."""
    d.mul_(rho).addcmul_(clean(g, ok), -a)
    if coupled is not None:
        d.addcmul_(p, -coupled)
    if shrink is not None:
        p.mul_(shrink)
    if move is None:
        p.add_(d)
    else:
        p.addcmul_(d, move)


def exponential(s: Tensor, rho_0: float) -> Tensor:
    r"""The paper's schedule, :math:`1 - (1 - \rho_0)^{1 - s}`: 1 / (1 - rho) falls exponentially."""
    return -torch.expm1((1 - s) * math.log1p(-rho_0))


def exponential_temperature(s: Tensor, rho_0: float) -> Tensor:
    r""":math:`(1 - u) / (1 + u)`, :math:`u = c^{1 - s}`: the temperature (1 + rho) / (1 - rho) falls exponentially."""
    u = torch.exp((1 - s) * math.log((1 - rho_0) / (1 + rho_0)))
    return (1 - u) / (1 + u)


def linear(s: Tensor, rho_0: float) -> Tensor:
    r""":math:`\rho_0 (1 - s) / (1 - \rho_0 s)`: the temperature falls linearly (Demon's rule, Chen et al. 2019)."""
    return rho_0 * (1 - s) / (1 - rho_0 * s)


SCHEDULES = {f.__name__: f for f in (exponential, exponential_temperature, linear)}


Schedule = Literal["exponential", "exponential_temperature", "linear"] | Callable[[Tensor], Tensor]


class Cooling(Group):
    """What a step reads of a group."""

    __slots__ = ()

    rho_0: float
    cool_steps: float | None
    schedule: Schedule
    hold_steps: float
    weight_decay: float
    decoupled: bool
    step: Tensor
    displacement: list[Tensor]


class CoolMomentum(Optimizer[Cooling]):
    r"""SGD whose momentum cools: Langevin dynamics in which friction grows until only gradient descent is left.

    .. math:: d_t = \rho_t d_{t-1} - \tfrac{1 + \rho_t}{2} \eta g_t, \qquad p_t = p_{t-1} + d_t

    :math:`\rho_t` falls from ``rho_0`` to 0 over ``cool_steps`` steps and stays there; then the method is SGD without
    momentum at **half** the learning rate. The effective learning rate falls by :math:`(1 + \rho_0) / (1 - \rho_0)`,
    so no learning-rate schedule is needed. With full-batch gradients there is no noise and nothing to anneal.

    Args:
        params: parameters or parameter groups; ``lr``, ``rho_0``, ``cool_steps``, ``schedule``, ``hold_steps``,
            ``weight_decay``, ``decoupled`` and ``maximize`` may differ between groups.
        lr: learning rate :math:`\eta`, the squared time step of the dynamics; stable on a curvature k below 4 / k.
        rho_0: initial momentum, in [0, 1).
        cool_steps: steps S until the momentum is 0, as a rule the length of the run; None: it stays at ``rho_0``.
        schedule: ``"exponential"`` (the paper's), ``"exponential_temperature"``, ``"linear"``, or a callable that maps
            the 0-D tensor t/S in [0, 1] to the momentum, a 0-D tensor; its result is clamped to [0, 1).
        hold_steps: steps at ``rho_0`` before the cooling starts.
        weight_decay: L2 penalty, part of the force, so that it fades with the effective learning rate.
        decoupled: shrink the weights by ``1 - lr * weight_decay`` outside the displacement instead.
        skip_nonfinite: turn a step with a non-finite gradient into nothing, for one more pass over the gradients.
        maximize: ascend.
        stochastic_rounding: round bfloat16 parameters up or down, in expectation to what was computed; else to nearest.
        fused: one pass over all elements in compiled code: needs a C compiler, on a GPU Triton.

    Half-precision parameters keep a float32 displacement and are rounded to nearest: late in cooling, displacements
    below half a unit in the last place of a bfloat16 weight are lost, unless ``stochastic_rounding`` keeps their mean.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse.

    Reference: Borysenko and Byshkin, Scientific Reports 11, 10705 (2021). The authors' main PyTorch file loses its
    first gradient; here, as in their other files, the first step moves.

    Example:
        >>> import torch
        >>> from fallline import CoolMomentum
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = CoolMomentum([w], lr=0.1, rho_0=0.9, cool_steps=100)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> bool(w.detach().abs().max() < 1e-4), optimizer.rho.item()
        (True, 0.0)
    """

    _separable = True

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        rho_0: Share = 0.99,
        cool_steps: Annotated[float, "[1, inf)"] | None = None,
        *,
        schedule: Schedule = "exponential",
        hold_steps: NonNegative = 0,
        weight_decay: NonNegative = 0.0,
        decoupled: bool = False,
        **run: Unpack[RunSettings],
    ) -> None:
        cooling = dict(lr=lr, rho_0=rho_0, cool_steps=cool_steps, schedule=schedule, hold_steps=hold_steps)
        super().__init__(params, {**cooling, "weight_decay": weight_decay, "decoupled": decoupled}, **run)

    def init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"displacement": zeros_like(p)}

    def init_shared(self) -> dict[str, Any]:
        return {"step": 0.0}  # one counter: a tensor that comes late is as cold as the rest

    def advance(self, groups: list[Cooling], shared: Shared, loss: Any) -> None:
        ok = self.finite(groups) if groups[0].skip_nonfinite else None
        move = None if ok is None else ok.to(shared.step.dtype)  # 0 or 1
        for t in groups:
            rho = _momentum(t)
            a = t.lr * (1 + rho) / 2
            shrunk = t.lr * t.weight_decay
            if move is not None:  # a skipped step multiplies by 1 and adds 0
                rho, a, shrunk = move * rho + (1 - move), move * a, move * shrunk
            coupled = a * t.weight_decay if t.weight_decay and not t.decoupled else None
            shrink = 1 - shrunk if t.weight_decay and t.decoupled else None
            kernel_scalars = dict(rho=rho, a=a, coupled=coupled, shrink=shrink, move=move, ok=ok)
            self.each(cool_, t, t.grads, t.displacement, **kernel_scalars)
        shared.step.add_(1 if move is None else move)
        if ok is not None:
            shared.skipped.add_(~ok)

    @staticmethod
    def alpha_to_steps(rho_0: float, alpha: float) -> float:
        r"""``cool_steps`` of a run given by the paper's :math:`\alpha`: :math:`\ln(1 - \rho_0) / \ln \alpha`.

        Raises:
            ValueError: ``rho_0`` is not in (0, 1) or ``alpha`` not in (0, 1); ``alpha=1`` is ``cool_steps=None``.
        """
        for name, value in (("rho_0", rho_0), ("alpha", alpha)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} is outside its range: a number in (0, 1)")
        return math.log1p(-rho_0) / math.log(alpha)

    @torch.no_grad()
    def reheat(self, rho: float, cool_steps: float | None = None, hold_steps: float = 0) -> None:
        """Start the schedule again, from momentum ``rho``, at the present step; for longer runs and for restarts.

        Args:
            rho: momentum of the coming step, in [0, 1).
            cool_steps: steps from there to momentum 0; None: each group keeps its own.
            hold_steps: steps at ``rho`` before.

        Raises:
            ValueError: as the constructor; nothing has changed.
        """
        new = {"rho_0": rho, "hold_steps": hold_steps} | ({} if cool_steps is None else {"cool_steps": cool_steps})
        self._check({**self.defaults, **new})
        for group in self.param_groups:
            group.update(new)
        self._shared().step.zero_()

    # -- readings: 0-D tensors, or one number a group [groups]; nothing is read back to the host ----------------

    @property
    def rho(self) -> Tensor:
        """Momentum of the coming step."""
        return self._reading(lambda rho, group: rho)

    @property
    def step_factor(self) -> Tensor:
        """What multiplies the gradient in the coming step: lr (1 + rho) / 2."""
        return self._reading(lambda rho, group: group["lr"] * (1 + rho) / 2)

    @property
    def effective_lr(self) -> Tensor:
        """Terminal drift per step and unit of force: lr (1 + rho) / (2 (1 - rho))."""
        return self._reading(lambda rho, group: group["lr"] * (1 + rho) / (2 * (1 - rho)))

    @property
    def friction(self) -> Tensor:
        """Friction per unit of time: 2 (1 - rho) / (1 + rho) / sqrt(lr)."""
        return self._reading(lambda rho, group: 2 * (1 - rho) / (1 + rho) / group["lr"] ** 0.5)

    @property
    def schedule_temperature(self) -> Tensor:
        """(1 + rho) / (1 - rho), the temperature at constant gradient noise, relative to the start."""
        return self._reading(lambda rho, g: (1 + rho) / (1 - rho) * (1 - g["rho_0"]) / (1 + g["rho_0"]))

    @property
    def rescaled_temperature(self) -> Tensor:
        """Mean square of the latest displacement over the parameters: the temperature times lr. One pass over them."""
        return self._mean(lambda t: self.sums(squared_norms, t, t.displacement)[0])

    @property
    def kinetic_temperature(self) -> Tensor:
        """Mean square of the latest displacement divided by lr, in units of the loss. Holds the drift too. One pass."""
        return self._mean(lambda t: self.sums(squared_norms, t, t.displacement)[0] / t.lr)

    @property
    def virial_temperature(self) -> Tensor:
        """Mean of x g, with the latest step's gradient at the point where it was taken; at equilibrium the kinetic one.

        One pass. Raises RuntimeError when no gradient is left: read it between ``step`` and ``zero_grad``.
        """

        def work(t: Cooling) -> Tensor:
            coupled, shrink = (0.0, 1 - t.lr * t.weight_decay) if t.decoupled else (t.weight_decay, 1.0)
            return self.sums(_virial, t, t.grads, t.displacement, weight_decay=coupled, shrink=shrink)[0]

        return self._mean(work, graded=True)

    @torch.no_grad()
    def _reading(self, formula: Callable[[Tensor, Mapping[str, Any]], Tensor]) -> Tensor:
        return torch.stack([formula(_momentum(t), t.values) for t in self._settings()]).squeeze()

    @torch.no_grad()
    def _mean(self, total: Callable[[Cooling], Tensor], graded: bool = False) -> Tensor:
        groups = self._groups(lambda p: p in self.state and (p.grad is not None or not graded))
        if not groups:
            raise RuntimeError("no gradient is left to read: ask between step() and zero_grad()")
        means: Tensor = self.param_groups[0]["step"].new_full((len(self.param_groups),), torch.nan)
        for t in groups:
            means[t.index] = total(t).sum() / sum(size(p) for p in t.owners)
        return means.squeeze()


def _momentum(t: Cooling) -> Tensor:
    """rho at step t: a 0-D tensor of the counter's precision. Computed from t/S, since alpha^t underflows."""
    step: Tensor = t.step
    if t.cool_steps is None:
        return torch.full_like(step, t.rho_0)
    s = ((step - t.hold_steps) / t.cool_steps).clamp(0, 1)
    if callable(t.schedule):
        return torch.as_tensor(t.schedule(s), dtype=step.dtype, device=step.device).clamp(0, BELOW_ONE)
    return SCHEDULES[t.schedule](s, t.rho_0)


def _virial(p: Tensor, g: Tensor, d: Tensor, *, weight_decay: float, shrink: float) -> tuple[Tensor]:
    x = (p - d) / shrink
    return ((x * (g + weight_decay * x)).sum(),)
