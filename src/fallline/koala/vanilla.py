"""KOALA-V: one variance for all weights (Davtyan et al., 2022)."""

from typing import Any, Literal, Unpack

from torch import Tensor

from .._group import Shared
from .._optimizer import Params
from .._settings import ClosedShare, NonNegative, Rate, RunSettings
from .base import Correction, KOALAGroup, Target, TensorwiseKOALA, penalized


def correct_(p: Tensor, g: Tensor, gain: Tensor, *, weight_decay: float | None, ok: Tensor | None) -> None:
    p.addcmul_(penalized(p, g, weight_decay, ok), -gain)


class VanillaGroup(KOALAGroup):
    """What a step reads of a group."""

    __slots__ = ()

    weight_decay_mode: str


class VanillaKOALA(TensorwiseKOALA[VanillaGroup]):
    r"""KOALA-V: the weights are the state, one variance P stands for their covariance. No state per parameter.

    .. math:: P \leftarrow P + q, \quad S_i = P \|h_i\|^2 + R, \quad
              x_i \leftarrow x_i - \eta L_i \tfrac{P}{S_i} h_i, \quad P \leftarrow P R / (P \max_i \|h_i\|^2 + R)

    :math:`h_i` is the gradient of tensor i with its weight decay, :math:`L_i` the loss above its target with the
    tensor's own penalty. Whatever its gradient, a step moves a tensor by at most :math:`\eta L_i \sqrt{P / R} / 2`:
    about :math:`\eta \sqrt P / 2` where R follows the loss, up to :math:`1 / \sqrt{1 - \alpha_R}` times that after a
    sudden rise.

    Args:
        params: parameters or parameter groups; ``lr`` and ``weight_decay`` may differ between groups.
        lr: multiplies the innovation; 1 asks for the target at once, a schedule of it is a schedule of targets.
        sigma: variance of the weights before the first step.
        q: process noise, added to the variance each step.
        r: measurement noise; None follows the mean squared loss.
        alpha_r: share of the old R in its running average, in [0, 1]; it starts at 1.
        weight_decay: L2 penalty, part of each tensor's loss and gradient.
        weight_decay_mode: ``"coupled"``; ``"reference"`` moves along the raw gradient, as the authors' program does.
        target: value that the loss should take, or a callable of the minibatch loss (0-D) such as
            ``lambda loss: loss - 4``. ``"auto"`` is 0 until a loss falls below it; then it stays one standard
            deviation of the recent losses below the lowest. (One of full batches may come to rest on 0 and never be
            below it: name a target.) A loss that falls below a fixed target climbs back to it.
        skip_nonfinite: turn a step with a non-finite loss or gradient into nothing.
        maximize: raise the loss, to ``target`` where one is given.
        stochastic_rounding: round bfloat16 parameters up or down, in expectation to what was computed; else to nearest.
        fused: one pass over all elements in compiled code: needs a C compiler, on a GPU Triton.

    Raises:
        ValueError: a setting is outside its range.
        RuntimeError: in ``step``, a gradient is sparse, or no loss is known.

    Reference: Davtyan et al., KOALA, AAAI 2022, arXiv 2107.03331, supplement equations (31) and (36).

    Example:
        >>> import torch
        >>> from fallline import VanillaKOALA
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = VanillaKOALA([w], sigma=0.1)
        >>> for _ in range(100):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        >>> bool(w.detach().abs().max() < 1e-2)
        True
    """

    _whole = TensorwiseKOALA._whole | {"sigma", "q", "weight_decay_mode"}

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        sigma: NonNegative = 1.0,
        q: NonNegative = 1.0,
        r: NonNegative | None = None,
        alpha_r: ClosedShare = 0.9,
        weight_decay: NonNegative = 0.0,
        weight_decay_mode: Literal["coupled", "reference"] = "coupled",
        target: Target = "auto",
        **run: Unpack[RunSettings],
    ) -> None:
        model = dict(lr=lr, sigma=sigma, q=q, r=r, alpha_r=alpha_r, target=target)
        super().__init__(params, {**model, "weight_decay": weight_decay, "weight_decay_mode": weight_decay_mode}, **run)

    @property
    def covariance(self) -> Tensor:
        """P, the variance of every weight: 0-D tensor; the predicted one, except between ``update`` and ``predict``."""
        P: Tensor = self.param_groups[0]["covariance"]
        return P

    def init_shared(self) -> dict[str, Any]:
        return {"covariance": float(self.defaults["sigma"]), **super().init_shared()}

    def _variance(self, shared: Shared) -> Tensor:
        return shared.covariance

    def _predict_covariance(self, shared: Shared, ok: Tensor | None = None) -> None:
        q = self.param_groups[0]["q"]
        shared.covariance.add_(q if ok is None else q * ok.to(shared.covariance.dtype))

    def _correct(
        self, corrections: list[Correction[VanillaGroup]], shared: Shared, ok: Tensor | None, *, drifting: bool
    ) -> None:
        P = shared.covariance
        contraction, _ = self._contraction(corrections, shared)
        for t, _, _, c in corrections:
            coupled = t.weight_decay_mode == "coupled" and t.weight_decay
            self.each(correct_, t, t.grads, c * P, weight_decay=t.weight_decay if coupled else None, ok=ok)
        P.mul_(contraction)
