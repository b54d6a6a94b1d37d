"""KOALA: training as Kalman filtering, the minibatch loss a noisy measurement of its target (Davtyan et al., 2022).

    predict   x <- F x,                 P <- F P F' + Q
    update    S_i = h_i P h_i' + R,     x_i <- x_i - lr (loss - target) P h_i / S_i,     P <- P - P h_i' h_i P / S_i

x are the weights (V, ++) or weights and velocities (M), h_i the gradient of tensor i, R follows the mean squared loss.
The methods differ in what they make of P: one variance (V), a 2x2 matrix (M), products with gradients (++). The
symbols P, R and S are those of the papers, and are named so here.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar, Unpack

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .._engine.torch_private import disable_dynamo
from .._group import Group, Shared
from .._loss import Attachment, LossAware, all_zero, leave_no_trace
from .._optimizer import Params
from .._settings import RunSettings
from .._shards import gather_anew
from ..kernels import clean, squared_norm, squared_norms

Target = float | str | Callable[[Tensor], Tensor]

EPS = 1e-9  # a tensor whose gradient has a smaller norm is not treated (the authors' constant)
TINY = 1e-30  # R stays above, so that S > 0
SMALL_LR = 1e-6, 0.01  # learning rates as people type them from Adam: they ask a KOALA for a hundredth of the way


def penalized(p: Tensor, g: Tensor, weight_decay: float | None, ok: Tensor | None = None) -> Tensor:
    """h, the gradient with that of the weight decay; where ``ok`` (0-D bool) is false, of the weight decay alone."""
    h = clean(g, ok)
    return h if weight_decay is None else h + weight_decay * p


def norms(p: Tensor, g: Tensor, *, weight_decay: float) -> tuple[Tensor, ...]:
    return squared_norm(g), squared_norm(penalized(p, g, weight_decay)), squared_norm(p)


class KOALAGroup(Group):
    """What every KOALA reads of a group."""

    __slots__ = ()

    weight_decay: float


KG = TypeVar("KG", bound=KOALAGroup)


class Measurement(NamedTuple):
    """What the gradients of a group say, each a vector [tensors]."""

    S: Tensor  # innovation variances
    h2: Tensor  # squared norms of the gradients with their weight decay
    g2: Tensor  # of the gradients
    p2: Tensor | float  # of the weights; 0 where they do not decay
    own: tuple[Tensor, ...] = ()  # what the method's correction needs beside them


class Correction(NamedTuple, Generic[KG]):
    """What is to be done with a group."""

    t: KG
    measured: Measurement
    treated: Tensor  # [tensors], which take part
    c: Tensor  # [tensors], lr times innovation / S; 0 of those that do not


class KOALA(LossAware[KG]):
    """What all KOALAs share: measurement noise, innovation, gains, and the order of the two stages.

    Two ways to train, the same trajectory:

    * ``predict()``; forward; backward; ``update(loss)`` - the two stages of the paper. Between ``update`` and
      ``predict`` the parameters are at the *filtered* point, else at the *predicted* one.
    * ``step(loss=loss)`` after backward: the update, then the prediction for the next step. Parameters rest at the
      predicted point, where the next loss is taken. ``eval()``, ``train()`` and ``posterior()`` visit the filtered one.
    """

    _whole = LossAware._whole | {"r", "alpha_r", "target", "maximize"}
    _run_defaults = {"skip_nonfinite": True}
    _words = {"stage": ("resting", "predicted", "filtered"), "evaluating": (False,)}
    _follows = False  # whether a model says when to be at which point
    _resumed = False  # whether state was loaded since the last step
    _foreign = False  # whether weights were loaded to which the state does not belong

    def __init__(self, params: Params, defaults: dict[str, Any], **run: Unpack[RunSettings]) -> None:
        super().__init__(params, defaults, **run)
        lr = self.defaults["lr"]
        if isinstance(lr, int | float) and SMALL_LR[0] <= lr <= SMALL_LR[1]:
            warnings.warn(
                f"{type(self).__name__}(lr={lr!r}) hardly moves: lr is no step length here, as in Adam or SGD, but the "
                "factor of a schedule, 1 by default. The length of a step is set by "
                f"{'q' if 'q' in defaults else 'qw and qv'}",
                stacklevel=3,
            )
        self._predict_covariance(self._shared())  # for the first step; with zero velocity no weight moves

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check(settings)
        target = settings["target"]
        number = isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target)
        if not ((isinstance(target, str) and target == "auto") or callable(target) or number):
            raise ValueError(
                f'target={target!r} is outside its range: "auto", a finite number, or a callable of the loss'
            )
        if settings["maximize"] and number and target == 0:
            raise ValueError(f"target={target!r} with maximize=True: give the value that the loss shall rise to, not 0")

    # -- the two stages ---------------------------------------------------------------------------------------

    @disable_dynamo
    @torch.no_grad()
    def predict(self) -> None:
        """First stage: move to where the dynamics expect the weights, and widen the covariance by the process noise.

        Raises:
            RuntimeError: the prediction was made already, or the parameters are at the filtered point of ``eval()``.
        """
        stage = self._expect("predict", "resting", "filtered")
        if stage == "filtered":
            self._predict()
        self._share(stage="predicted")

    @disable_dynamo
    @torch.no_grad()
    def update(self, loss: Any = None, loss_var: Any = None) -> None:
        """Second stage: correct by the measured loss, with the gradients that its backward pass left.

        A non-finite loss or gradient is no measurement: nothing is corrected, the prediction stands.

        Args:
            loss: a scalar (tensor or number), or one loss per example; may be left out where it is observed.
            loss_var: mean of the squared losses of the batch (the authors' name, no variance); by default that of
                ``loss``, which for a scalar is its square.

        Raises:
            RuntimeError: ``predict`` was not called, no loss is known, or a gradient is sparse. Nothing has changed.
        """
        self._expect("update", "predicted")
        self._check_again()
        self._round_anew()
        groups = self._groups(lambda p: p.grad is not None)
        shared = self._shared()
        moments = self._moments(shared.measurement_noise, loss, loss_var)
        if moments is None:
            raise RuntimeError(self._why_no_loss())
        self._filter(groups, shared, *moments, stepping=False)
        self._share(stage="filtered")
        self._opt_called = True  # what step() would tell learning-rate schedulers

    def advance(self, groups: list[KG], shared: Shared, loss: Any) -> None:
        self._expect("step", "resting", "predicted")
        moments = self._moments(shared.measurement_noise, loss)
        if moments is None:
            if all_zero(groups):  # torch.distributed.checkpoint calls step() so
                shared.skipped.add_(0)
                return
            raise RuntimeError(self._why_no_loss())
        self._filter(groups, shared, *moments, stepping=True)
        self._share(stage="resting")

    def _innovation(self, shared: Shared, mean: Tensor, mean_square: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """How far the loss is above its target; and by name what the filter knows with this measurement, as R."""
        one = self.param_groups[0]
        new: dict[str, Tensor] = {}
        target, loss = one["target"], mean
        if target == "auto":
            loss = -mean if one["maximize"] else mean
            target, new = self._bound(shared, loss)
        elif callable(target):
            target = target(mean)
        above = target - mean if one["maximize"] and loss is mean else loss - target
        if one["r"] is not None:
            return above, {"measurement_noise": torch.full_like(mean, one["r"]), **new}
        measured = mean_square - 2 * target * loss + target**2  # mean (loss - target)^2, a raw second moment
        R = self._averaged(shared.measurement_noise, measured.clamp_min(0)).clamp_min(TINY)
        return above, {"measurement_noise": R, **new}

    def _bound(self, shared: Shared, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``target="auto"``: 0 until a loss is below it, then a bound below all of them; and what the bound needs."""
        positive, off, share = shared.lowest >= 0, loss - shared.loss_mean, 1 - self.param_groups[0]["alpha_r"]
        scale = torch.maximum(loss.square(), shared.measurement_noise)  # of the losses down to here
        lowest = torch.minimum(shared.lowest, loss)
        variance = torch.where(positive, scale, shared.loss_variance.lerp(off.square(), share))
        latest = torch.where(positive, loss, shared.loss_mean + share * off)
        new = {"lowest": lowest, "loss_mean": latest, "loss_variance": variance}
        return torch.where(lowest < 0, lowest - variance.sqrt(), 0.0), new

    def _learn(self, shared: Shared, new: dict[str, Tensor], ok: Tensor | None) -> None:
        """Keep what was measured, unless ``ok`` (0-D bool) is false."""
        for name, value in new.items():
            old = getattr(shared, name)
            old.copy_(value if ok is None else torch.where(ok, value, old))
        self._resumed = self._foreign = False

    def _averaged(self, R: Tensor, measured: Tensor) -> Tensor:
        """R's running average; it starts at 1."""
        return R.lerp(measured, 1 - self.param_groups[0]["alpha_r"])

    # -- what the methods write -------------------------------------------------------------------------------

    def _filter(self, groups: list[KG], shared: Shared, mean: Tensor, mean_square: Tensor, *, stepping: bool) -> None:
        """Take a measurement, of which the loss's ``mean`` and ``mean_square`` are known; predict when ``stepping``."""
        raise NotImplementedError

    def _predict(self) -> None:
        """Move the weights as the dynamics say, and predict the covariance."""
        self._predict_covariance(self._shared())

    def _predict_covariance(self, shared: Shared, ok: Tensor | None = None) -> None:
        """P <- F P F' + Q, unless ``ok`` (0-D bool) is false."""

    # -- the filtered point -----------------------------------------------------------------------------------

    def eval(self) -> None:
        """Move the parameters to the filtered point, for evaluation or saving; ``train()`` comes back exactly."""

    def train(self) -> None:
        """Come back from ``eval()``, bit for bit; elsewhere it does nothing."""

    @contextmanager
    def posterior(self) -> Iterator[None]:
        """``with optimizer.posterior():`` has the parameters at the filtered point."""
        away = self.param_groups[0]["evaluating"]
        self.eval()
        try:
            yield
        finally:
            if not away:
                self.train()

    def follow(self, model: torch.nn.Module) -> RemovableHandle:
        """Let the parameters be where ``model`` needs them, with nothing to remember.

        A forward pass of the model in eval mode and without gradients happens at the filtered point, as what is saved
        after it; the next other pass comes back, and so does a step.

        Weights that the model loads in mid run, without the optimizer's state that was saved with them, stay as they
        are until the next step: such as the best ones of a run, which are evaluated at its end.

        Returns:
            A handle; ``handle.remove()`` ends it. Copies and pickles of the model are not followed.
        """
        optimizer: Any = self._losses.optimizer() or self  # not a trainer's wrapper, which is no more tomorrow
        optimizer._follows = True
        leave_no_trace(model)
        model.register_load_state_dict_post_hook(_Loader(optimizer))
        return model.register_forward_pre_hook(_Follower(optimizer), prepend=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class."""
        super().load_state_dict(state_dict)
        self._resumed, self._foreign = True, False

    def _disown(self) -> None:
        """Weights were loaded: if the state was not, velocities and copies of weights are those of other weights."""
        if not self._resumed:
            for state in self.state.values():
                state.pop("predicted", None)
            self._share(evaluating=False)
            self._foreign = True

    # -- plumbing ---------------------------------------------------------------------------------------------

    @property
    def measurement_noise(self) -> Tensor:
        """R, the running mean of the squared innovation: 0-D tensor."""
        R: Tensor = self.param_groups[0]["measurement_noise"]
        return R

    def init_shared(self) -> dict[str, Any]:
        r = self.defaults["r"]
        R = 1.0 if r is None else float(r)
        shared = {"measurement_noise": R, "lowest": 0.0, "loss_mean": 0.0, "loss_variance": 0.0}
        return {**shared, "stage": "resting", "evaluating": False}

    def _expect(self, verb: str, *stages: str) -> str:
        stage: str = self.param_groups[0]["stage"]
        if self._follows:
            self.train()
        if self.param_groups[0]["evaluating"]:
            raise RuntimeError(f"{verb}: the parameters are at the filtered point of eval(); call train() first")
        if stage not in stages:
            last = {"filtered": "update", "predicted": "predict", "resting": "step"}[stage]
            due = {"filtered": "predict()", "predicted": "update(loss)", "resting": "predict() or step(loss=loss)"}
            raise RuntimeError(f"{verb} cannot follow {last}: the next call is {due[stage]}")
        return stage


class TensorwiseKOALA(KOALA[KG]):
    """The papers' filters: each tensor's gradient has an innovation variance S of its own."""

    def _filter(self, groups: list[KG], shared: Shared, mean: Tensor, mean_square: Tensor, *, stepping: bool) -> None:
        innovation, new = self._innovation(shared, mean, mean_square)
        corrections: list[Correction[KG]] = []
        finite = [mean, mean_square]
        for t in groups:
            measured = self._measure(t, shared, new["measurement_noise"])
            loss = innovation + t.weight_decay / 2 * measured.p2  # the tensor's own penalty only
            treated = (measured.g2 >= EPS**2) & (measured.S > 0)
            corrections.append(Correction(t, measured, treated, torch.where(treated, t.lr * loss / measured.S, 0.0)))
            finite += [measured.g2.sum(), loss.sum(), measured.S.sum()]
        ok = torch.stack(finite).isfinite().all() if self.param_groups[0]["skip_nonfinite"] else None
        if ok is not None:
            shared.skipped.add_(~ok)
            corrections = [one._replace(treated=one.treated & ok, c=torch.where(ok, one.c, 0.0)) for one in corrections]
        self._learn(shared, new, ok)
        self._correct(corrections, shared, ok, drifting=stepping)
        if stepping:
            self._predict_covariance(shared, ok)

    def _measure(self, t: KG, shared: Shared, R: Tensor) -> Measurement:
        """Innovation variances and squared norms."""
        g2: Tensor | None = None
        p2: Tensor | float = 0.0
        if t.weight_decay:
            g2, h2, p2 = self.sums(norms, t, t.grads, weight_decay=t.weight_decay)
        else:
            (h2,) = self.sums(squared_norms, t, t.grads)
        return Measurement(self._variance(shared) * h2 + R, h2, h2 if g2 is None else g2, p2)

    def _variance(self, shared: Shared) -> Tensor:
        """The variance of the weights, where all tensors share one: 0-D."""
        raise NotImplementedError

    def _correct(self, corrections: list[Correction[KG]], shared: Shared, ok: Tensor | None, *, drifting: bool) -> None:
        """Correct weights and covariance; ``drifting`` moves the weights on in the same pass, as a step does."""
        raise NotImplementedError

    def _contraction(self, corrections: list[Correction[KG]], shared: Shared) -> tuple[Tensor, Tensor]:
        """1 - P m / S and m, the largest squared norm: what contracts a covariance that all tensors share."""
        R = shared.measurement_noise
        largest = (torch.where(one.treated, one.measured.h2, 0.0).amax() for one in corrections)
        m = torch.stack([torch.zeros_like(R), *largest]).amax()
        # 1 - P m / S = R / S where S = P m + R; the difference would cancel where R is small. Nothing treated: 1.
        return torch.where(m > 0, R / (self._variance(shared) * m + R), 1.0), m


class _Follower(Attachment):
    """A forward pre-hook that moves the parameters to the point that the coming pass needs."""

    _filtered = False  # where the last pass was

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        optimizer = self.optimizer
        if optimizer is not None:
            filtered = not (module.training or torch.is_grad_enabled())
            with torch.inference_mode(False):  # what is moved here is trained on
                optimizer.eval() if filtered else optimizer.train()
            if filtered != self._filtered:
                gather_anew(module)
            self._filtered = filtered


class _Loader(Attachment):
    """A hook after ``load_state_dict`` of a model."""

    def __call__(self, module: torch.nn.Module, keys: Any) -> None:
        optimizer = self.optimizer
        if optimizer is not None:
            optimizer._disown()
