"""The methods as their authors' programs run them: every operation of a formula is a pass over memory.

    python benchmarks/speed --with benchmarks/unfused.py

Written from specifications of those programs, without their code: the formulas, in the order in which they are
evaluated, with the tensors that this makes and the numbers that the host waits for. Where a specification gives a sum
of passes and not each of them, a docstring says how we come to it; where in doubt we count less. Defaults and
trajectories are those of fallline's classes in the settings that mimic the authors' programs. Only what a benchmark
needs is here: one setting for all groups, no check of anything.

A word is one element read or written by one operation, a temporary is a new tensor as large as the parameter, and a
synchronisation is a number that the host reads before it can go on.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from speed import Method, Words


class Plain(torch.optim.Optimizer):
    """A loop over the tensors that have a gradient, whose state is in the parameter's dtype."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.all: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | None = None) -> None:  # type: ignore[override]
        """One step; ``loss`` is a scalar or one loss per example."""
        self._step([p for p in self.all if p.grad is not None], loss)

    def _step(self, params: list[Tensor], loss: Any) -> None:
        raise NotImplementedError


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without the tensor of products: 2 words."""
    return torch.dot(a.flatten(), b.flatten())


def scalar(value: float, like: Tensor) -> Tensor:
    """A 0-D tensor on the device, in float32 at least."""
    return torch.tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


class PlainCoolMomentum(Plain):
    """CoolMomentum: d <- rho d - a g, x <- x + d, then the mean square of d for the log of the temperature.

    Passes: scale d (2), add the gradient (3), add d to x (3); the log squares d (2), sums that (1), and counts the
    elements by a tensor of ones (1) and its sum (1). In all 13 words an element, 2 temporaries a tensor, and no
    synchronisation; ``temperature=False`` takes 8 words an element, 0 temporaries a tensor. Weight decay adds 3 and 1.
    The momentum is a number of the host, from a running product.

    Source: coolmomentum.md, sections 1, 7 and 8.2, optimizers/coolmom_pytorch.py. It counts two tensors of ones; what
    the second is for it does not say, and it is left out. Theirs adds the weight decay to the gradient in place; here
    gradients are left alone.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        rho_0: float = 0.99,
        cool_steps: float | None = None,
        *,
        weight_decay: float = 0.0,
        temperature: bool = True,
    ) -> None:
        super().__init__(params)
        self.lr, self.rho_0, self.weight_decay, self.temperature = lr, rho_0, weight_decay, temperature
        self.alpha = 1.0 if cool_steps is None else (1 - rho_0) ** (1 / cool_steps)
        self.power = 1.0  # alpha^t
        for p in self.all:
            self.state[p]["displacement"] = torch.zeros_like(p)
        self.squares: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def _step(self, params: list[Tensor], loss: Any) -> None:
        rho = max(0.0, 1 - (1 - self.rho_0) / self.power)
        self.power *= self.alpha
        for p in params:
            g: Any = p.grad
            if self.weight_decay:
                g = g.add(p, alpha=self.weight_decay)
            d = self.state[p]["displacement"]
            d.mul_(rho).add_(g, alpha=-self.lr * (1 + rho) / 2)
            p.add_(d)
            if self.temperature:
                self.squares = self.squares + d.square().sum()
                self.count = self.count + torch.ones_like(d).sum()


class PlainKOALA(Plain):
    """What the authors' KOALAs share: the measurement noise R; gradient h and loss of a tensor with its weight decay.

    Passes: the gradient's norm (1), which the host reads to skip tensors without gradient; wd x (2) and h = g + wd x
    (3), also where wd is 0; the norm of x (1). In all 7 words an element, 2 temporaries a tensor, 1 synchronisation a
    tensor. Parameters rest at the predicted point, as those of fallline do.
    """

    def __init__(self, params: Any, lr: float, alpha_r: float, weight_decay: float) -> None:
        super().__init__(params)
        self.lr, self.alpha_r, self.weight_decay = lr, alpha_r, weight_decay
        self.R = scalar(1.0, self.all[0])

    def _measured(self, params: list[Tensor], loss: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self.R = self.alpha_r * self.R + (1 - self.alpha_r) * loss.square().mean()
        for p in params:
            if p.grad is None or vector_norm(p.grad) < 1e-9:  # the host waits
                continue
            h = p.grad + self.weight_decay * p
            yield p, h, loss.mean() + self.weight_decay / 2 * vector_norm(p).square()


class PlainVanillaKOALA(PlainKOALA):
    """KOALA-V: x <- x - lr L P / S g, with S = P |h|^2 + R; then P <- P - P^2 max |h|^2 / S + q.

    Passes: those of all KOALAs (7), the norm of h (1), the step as a tensor (2), its subtraction (3). In all 13 words
    an element, 3 temporaries a tensor, 1 synchronisation a tensor. No state. The step is along the gradient without
    weight decay: ``weight_decay_mode="reference"``.

    Source: koala.md, sections 3.1, 9 (D1, D4, D13) and 11, which has the 13 words and the synchronisations; these
    passes are our reading of them.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        sigma: float = 1.0,
        q: float = 1.0,
        alpha_r: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, alpha_r, weight_decay)
        self.q, self.P = q, scalar(sigma + q, self.R)

    def _step(self, params: list[Tensor], loss: Any) -> None:
        ratios = []
        for p, h, own in self._measured(params, loss):
            hh = vector_norm(h).square()
            S = self.P * hh + self.R
            p -= self.lr * own * self.P / S * p.grad
            ratios.append(hh / S)
        self.P = self.P - self.P.square() * torch.stack(ratios).max() + self.q


class PlainMomentumKOALA(PlainKOALA):
    """KOALA-M: the update by h of x, of the velocity v and of the average weights; then x, v <- F (x, v).

    Passes of the update: those of all KOALAs (7), the norm of h (1), a step as a tensor and its subtraction for x (5)
    and for v (5), the average from two scaled tensors (7): 25. Of the prediction: the distance of x to its average (3)
    and its norm (1), and all four products with F, the 1 and the 0 too, in two sums (14): 18. In all 43 words an
    element, 11 temporaries a tensor, 1 synchronisation a tensor and 2 more, and 2 copies to the device: process noise
    and covariance become 2x2 matrices by way of the host. State: v and the average, which starts at 0
    (``average_init="zeros"``).

    Source: koala.md, sections 3.2, 9 (D2 to D4, D14, D15) and 11, which has 25 and 18 words and the synchronisations;
    these passes are our reading of them.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        sw: float = 0.1,
        sc: float = 0.0,
        sv: float = 0.1,
        a: float = 0.9,
        qw: float = 1e-2,
        qv: float = 1e-2,
        alpha_r: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, alpha_r, weight_decay)
        for p in self.all:
            self.state[p] = {"velocity": torch.zeros_like(p), "average": torch.zeros_like(p)}
        self.decay, self.qx, self.qv = a, scalar(qw, self.R), qv
        self.F, self.P = self._matrix(1.0, 1.0, 0.0, a), self._matrix(sw, sc, sc, sv)
        with torch.no_grad():
            self._predict()  # for the first step: v is 0

    def _matrix(self, *entries: float) -> Tensor:
        return torch.tensor(entries, dtype=torch.float64, device=self.R.device).view(2, 2)

    def _step(self, params: list[Tensor], loss: Any) -> None:
        ratios = []
        for p, h, own in self._measured(params, loss):
            v, average = self.state[p].values()
            hh = vector_norm(h).square()
            S = self.P[0, 0] * hh + self.R
            p -= self.lr * own / S * self.P[0, 0] * h
            v -= self.lr * own / S * self.P[1, 0] * h
            torch.add(0.9 * average, 0.1 * p, out=average)
            ratios.append(hh / S)
        D = self._matrix(torch.stack(ratios).max().item(), 0.0, 0.0, 0.0)  # the host waits
        self.P = self.P - self.P @ D @ self.P.T
        self._predict()

    def _predict(self) -> None:
        squares = [vector_norm(self.state[p]["average"] - p).square() for p in self.all]
        self.qx = 0.9 * self.qx + 0.1 * torch.stack(squares).sum().sqrt() / sum(p.numel() for p in self.all)
        for p in self.all:
            v = self.state[p]["velocity"]
            products = 1.0 * p, 1.0 * v, 0.0 * p, self.decay * v  # F, with its constants
            torch.add(*products[:2], out=p)
            torch.add(*products[2:], out=v)
        self.P = self.F @ self.P @ self.F.T + self._matrix(self.qx.item(), 0.0, 0.0, self.qv)  # the host waits


class PlainKOALAPlusPlus(PlainKOALA):
    """KOALA++: v <- (alpha - lambda) v + q h + (w - q lambda) H, x <- x - lr L (v + q h) / S, H <- h.

    Passes: those of all KOALAs (7), three products of h, H and v and the norm of H (7), three scaled tensors and two
    sums for v (12), a product and the norm of h for S (3), q h (2), its sum with v (3), the step as a tensor (2) and
    its subtraction (3). In all 39 words an element, 10 temporaries a tensor, of which h and v become the state, and 1
    synchronisation a tensor. State: v and H.

    Source: koala.md, sections 3.3 and 11, which has 40 words and the synchronisations; these passes are our reading
    of them. Without fallline's safeguard against S < R (section 9, E5): where that acts, trajectories part.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        sigma: float = 1.0,
        q: float = 1.0,
        alpha_r: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, alpha_r, weight_decay)
        self.sigma, self.q = sigma, q
        for p in self.all:
            self.state[p] = {"product": torch.zeros_like(p), "gradient": torch.zeros_like(p)}
        self.S: dict[Tensor, Tensor] = {}

    def _step(self, params: list[Tensor], loss: Any) -> None:
        q = self.q
        for p, h, own in self._measured(params, loss):
            if p not in self.S:  # a virtual measurement precedes the first
                self.state[p] = {"product": self.sigma * h, "gradient": h}
                self.S[p] = (self.sigma + q) * vector_norm(h).square() + self.R
            v, H = self.state[p].values()
            hH, hv, Hv, HH = dot(h, H), dot(h, v), dot(H, v), vector_norm(H).square()
            alpha, lam = hH / HH, (hv + q * hH) / self.S[p]
            w = (hv * HH - Hv * hH) / HH.square()
            v = (alpha - lam) * v + q * h + (w - q * lam) * H
            S = dot(h, v) + q * vector_norm(h).square() + self.R
            p -= self.lr * own / S * (v + q * h)
            self.state[p], self.S[p] = {"product": v, "gradient": h}, S


class PlainArTuRO(Plain):
    """arTuRO: the filter of each tensor, a bisection that makes all trial weights and precisions, the step.

    Passes of the filter: the noise (4), k0 and k1 (12), S (8), the gradient's error (9), two gains (6), five
    corrections (30). Of a trial: h (2), eta precision (2), their sum (3), the trial weights (9) and precisions (7), and
    their divergence (9). The step is a trial without the last. In all 69 + 32 n + 23 words an element and
    17 + 10 n + 7 temporaries a tensor for n trials, kept in ``trials``: at most 15 in the first step, as a rule 1 to 4
    in the others. Each trial has 3 synchronisations, for the loop, the side and the early end; the sign of the last
    multiplier and the loop's end are 1 or 2 more. State: filter (5), precision and the two trials, 8 words an
    element.

    Source: arturo.md, sections 3, 5, 6 and 12, which has the trials that are written and the synchronisations; it
    counts no passes, here one operation of a formula is one. Theirs has about four more buffers that are never used,
    and binds parameters to new tensors. Agrees with ``ArTuRO(solver="bisect", curvature_floor=-inf)``: theirs does
    not decay the centre of the very first step, here it decays as in all others.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2.8e-3,
        *,
        reg_weight: float = 0.3,
        prior_prec: float = 0.0015,
        nu: float = 1.3,
        var_init: float = 0.01,
        filter_var_init: float = 5e-5,
        process_noise: float = 2.5e-3,
        measurement_noise: float = 1.22,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        self.lr, self.kappa, self.c, self.nu = lr, reg_weight, reg_weight * prior_prec, nu
        self.q, self.r, self.weight_decay = process_noise, measurement_noise, weight_decay
        self.eta, self.trials = scalar(-1.0, self.all[0]), 0
        for p in self.all:
            self.state[p] = {"a": torch.full_like(p, 0.1), "precision": torch.full_like(p, 1 / var_init)}
            self.state[p] |= {"p00": torch.full_like(p, filter_var_init), "p01": torch.zeros_like(p)}
            self.state[p] |= {"p11": torch.full_like(p, filter_var_init)}
            self.state[p] |= {"trial": torch.zeros_like(p), "trial_precision": torch.zeros_like(p)}

    def _step(self, params: list[Tensor], loss: Any) -> None:
        for p in params:
            if self.weight_decay:
                p *= 1 - self.lr * self.weight_decay
            self._filter(p)
        self.eta = self._multiplier(params)
        for p in params:
            self._move(p, self.eta, p, self.state[p]["precision"])

    def _filter(self, x: Tensor) -> None:
        g, s = x.grad, self.state[x]
        assert g is not None
        if "b" not in s:
            s["b"] = g.clone()
        b, a, p00, p01, p11 = s["b"], s["a"], s["p00"], s["p01"], s["p11"]
        p00 += self.q
        p11 += self.q
        k0 = p00 + p01 * x
        k1 = p01 + p11 * x
        S = k0 + k1 * x + self.r
        error = g - a * x - b
        gain0, gain1 = k0 / S, k1 / S
        b += gain0 * error
        a += gain1 * error
        p00 -= gain0 * k0
        p01 -= gain0 * k1
        p11 -= gain1 * k1

    def _multiplier(self, params: list[Tensor]) -> Tensor:
        low, high = torch.zeros_like(self.eta), torch.full_like(self.eta, 1e4)
        if self.eta >= 0:  # the host waits
            low, high = self.eta / 3, (3 * self.eta).clamp_max(1e4)
        self.trials = 0
        while high - low > 0.5:  # the host waits
            eta, kl = (low + high) / 2, torch.zeros_like(low)
            for p in params:
                s = self.state[p]
                self._move(p, eta, s["trial"], s["trial_precision"])
                kl += (s["precision"] * (s["trial"] - p).square()).sum() / 2
            self.trials += 1
            if kl > self.lr:  # the host waits
                low = eta
            else:
                high = eta
            if (kl - self.lr).abs() < 0.1 * self.lr:  # the host waits
                break
        return (low + high) / 2

    def _move(self, x: Tensor, eta: Tensor, new_x: Tensor, new_precision: Tensor) -> None:
        s = self.state[x]
        h, pull = s["a"] + self.c, eta * s["precision"]
        torch.div(pull * x - s["b"], h + pull, out=new_x)
        torch.div(h + self.nu * s["precision"], self.kappa + self.nu, out=new_precision)


RATE = 1e-9
"""As the benchmark's own methods: nobody moves a weight by more than its last digits."""


def plain(name: str, label: str, make: type[Plain], words: float, state: float, **settings: Any) -> Method:
    """A method for the benchmark, timed beside fallline's fused form of it: the ratio is what is gained.

    Args:
        name: of fallline's method.
        label: for tables.
        make: the class.
        words: of its own passes, all in the parameters' dtype, as its state is.
        state: words of state a parameter.
        settings: of the class.
    """
    optimizer, loss = partial(make, **settings), issubclass(make, PlainKOALA)
    return Method(
        f"{name}-plain", label, optimizer, "plain", Words(words, 0), state, against=f"{name}-fused", loss=loss
    )


METHODS = (
    plain("coolmomentum", "CoolMomentum", PlainCoolMomentum, 8, 1, lr=RATE, temperature=False),
    plain("koala-v", "VanillaKOALA", PlainVanillaKOALA, 13, 0, lr=RATE),
    plain("koala-m", "MomentumKOALA", PlainMomentumKOALA, 43, 2, lr=RATE),
    plain("koala-pp", "KOALAPlusPlus", PlainKOALAPlusPlus, 39, 2, lr=RATE),
    # The trust region of the authors' CIFAR networks: the multiplier of a tiny one lies beyond the end of the bracket,
    # where every step takes 14 trials. The words are those of four trials, about the mean.
    plain("arturo", "ArTuRO, bisection", PlainArTuRO, 69 + 32 * 4 + 23, 8),
)
"""The authors' programs without their logs."""
