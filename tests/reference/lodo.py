"""LODO (Liao et al., 2022) in float64, in the order of the authors' loop, differentiated by torch's autograd.

An iteration moves, then measures, then learns from what it measured:

    x <- x - lr G(theta) m,      l = f(x),      theta <- Adam(theta, dl/dtheta),      m <- beta m + (1 - beta) dl/dx,

where dl/dtheta flows through this one step, and through nothing before it. The first iteration moves nothing, for
m = 0. The library's call ends with the step that here begins the next iteration, keeps no graph, and has dl/dtheta in
closed form. G(theta) below is without the factor lr.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# -- G(theta) v, the four operators: theta is a list of tensors ----------------------------------------------------


def width(n: int, k: int, padding: str) -> int:
    """Entries of the network's layers: at least 2n, in blocks of k; the release adds a block where k divides 2n."""
    return 2 * n + k - 2 * n % k if padding == "release" else k * math.ceil(2 * n / k)


def padded(v: Tensor, h: int) -> Tensor:
    """E v: zeros behind v, h entries in all."""
    return torch.cat([v, v.new_zeros(h - len(v))])


def scatter(q: Tensor, permutation: Tensor) -> Tensor:
    """P' q: the vector u with u[permutation[j]] = q[j], where P u = u[permutation]."""
    return q[permutation.argsort()]


def network(theta: Sequence[Tensor], permutations: Tensor, v: Tensor) -> Tensor:
    """E' A' A E v with A = B_L' P_L ... B_1' P_1; the blocks of the B_l are theta[0], [layers, blocks, in, out]."""
    (W,) = theta
    blocks, k = W.shape[1:3]
    u = padded(v, blocks * k)
    for W_l, permutation in zip(W, permutations, strict=True):
        s = u[permutation].view(blocks, k)
        u = torch.einsum("bi,bio->bo", s, W_l).flatten()
    for W_l, permutation in reversed(list(zip(W, permutations, strict=True))):
        q = torch.einsum("bo,bio->bi", u.view(blocks, k), W_l).flatten()
        u = scatter(q, permutation)
    return u[: len(v)]


def residual(theta: Sequence[Tensor], permutations: Tensor, v: Tensor) -> Tensor:
    """E' A' D A E v with A = (I + diag(w_L) P_L) ... (I + diag(w_1) P_1), D = diag(d); theta is (w, d)."""
    w, d = theta
    u = padded(v, len(d))
    for w_l, permutation in zip(w, permutations, strict=True):
        u = u + w_l * u[permutation]
    u = d * u
    for w_l, permutation in reversed(list(zip(w, permutations, strict=True))):
        u = u + scatter(w_l * u, permutation)
    return u[: len(v)]


def scaled(theta: Sequence[Tensor], permutations: None, v: Tensor) -> Tensor:
    """diag(w) v for LODO-Diagonal, w v for LODO-Global."""
    return theta[0] * v


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "network": network,
    "residual": residual,
    "diagonal": scaled,
    "global": scaled,
}


# -- the loop ------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """The settings of a network; they may change from one iteration to the next."""

    lr: float = 1.0
    meta_lr: float = 1e-3
    beta: float = 0.9
    meta_optimizer: str = "adam"
    meta_betas: tuple[float, float] = (0.9, 0.999)
    meta_eps: float = 1e-7
    meta_eps_mode: str = "keras"
    second_moment: str = "entry"
    weight_decay: float = 0.0


class Network:
    """A vector of parameters with its average m, and the operator G(theta) with the moments M, V of its Adam.

    Args:
        x: the parameters, [n].
        operator: a key of `OPERATORS`.
        theta: what the operator learns.
        permutations: what it does not, [layers, width]; None where there are no layers.
    """

    def __init__(
        self, x: Tensor, operator: str, theta: Sequence[Tensor], permutations: Tensor | None, settings: Settings
    ) -> None:
        self.before = x.detach().double().clone()  # x before the step that begins an iteration
        self.m = torch.zeros_like(self.before)
        self.moves = torch.zeros_like(self.before, dtype=torch.bool)
        self.lr, self.decay = settings.lr, 0.0  # of the step that begins the iteration
        self.operator, self.permutations, self.settings = OPERATORS[operator], permutations, settings
        self.theta = [t.detach().double().clone().requires_grad_() for t in theta]
        self.M = [torch.zeros_like(t) for t in self.theta]
        self.V = [torch.zeros_like(t) for t in self.theta]
        self.t = 0

    @property
    def x(self) -> Tensor:
        """Where the next loss is taken: the authors' first line, as a function of theta."""
        s = -self.lr * self.operator(self.theta, self.permutations, torch.where(self.moves, self.m, 0.0))
        return torch.where(self.moves, (1 - self.lr * self.decay) * self.before + s, self.before)

    def forget(self) -> None:
        """Take x as it is: the next loss says nothing about theta."""
        self.before, self.moves = self.x.detach(), torch.zeros_like(self.moves)

    def learn(self, gradients: Sequence[Tensor]) -> None:
        """theta <- Adam(theta, gradients), or plain descent."""
        s = self.settings
        beta_1, beta_2 = s.meta_betas
        self.t += 1
        for theta, M, V, grad in zip(self.theta, self.M, self.V, gradients, strict=True):
            if s.meta_optimizer == "sgd":
                theta.data -= s.meta_lr * grad
                continue
            square = grad**2
            if s.second_moment == "block":
                square = square.mean((-2, -1), keepdim=True).expand_as(grad)
            M.copy_(beta_1 * M + (1 - beta_1) * grad)
            V.copy_(beta_2 * V + (1 - beta_2) * square)
            if s.meta_eps_mode == "keras":
                rate = s.meta_lr * math.sqrt(1 - beta_2**self.t) / (1 - beta_1**self.t)
                theta.data -= rate * M / (V.sqrt() + s.meta_eps)
            else:
                M_hat, V_hat = M / (1 - beta_1**self.t), V / (1 - beta_2**self.t)
                theta.data -= s.meta_lr * M_hat / (V_hat.sqrt() + s.meta_eps)

    def average(self, g: Tensor, present: Tensor, x: Tensor) -> None:
        """m <- beta m + (1 - beta) g, and the settings that the next step will use; what has no gradient stays."""
        s = self.settings
        self.m = torch.where(present, s.beta * self.m + (1 - s.beta) * g, self.m)
        self.before, self.moves, self.lr, self.decay = x, present, s.lr, s.weight_decay


def iterate(networks: Sequence[Network], f: Callable[..., Tensor], present: Sequence[Tensor] | None = None) -> float:
    """One iteration of the authors' loop over all networks; returns the loss.

    Args:
        f: the loss of a new minibatch, of the networks' vectors.
        present: one bool per parameter, false where it takes no part in this iteration: it has no gradient, its m
            stays, and it is left out of the next step. A network without any is left as it is.
    """
    masks = present or [torch.ones_like(net.moves) for net in networks]
    xs = [net.x for net in networks]
    leaves = [x for x in xs if not x.requires_grad]  # an operator without a layer has nothing to differentiate
    for x in leaves:
        x.requires_grad_()
    loss = f(*(torch.where(mask, x, x.detach()) for x, mask in zip(xs, masks, strict=True)))
    wanted = [*xs, *(theta for net in networks for theta in net.theta)]
    found = list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    gradients, meta_gradients = found[: len(xs)], found[len(xs) :]
    for net, g, x, mask in zip(networks, gradients, xs, masks, strict=True):
        own = [meta_gradients.pop(0) for _ in net.theta]
        if mask.any():
            net.learn(own)
            net.average(g, mask, x.detach())
    return loss.item()
