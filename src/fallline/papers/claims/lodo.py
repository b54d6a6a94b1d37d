"""LODO's claims (Liao et al., 2023): the inverse Hessian, the Kalman gain, what is learned first, and invariances."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fallline import LODO
from fallline.bench.common.seeds import generator
from fallline.bench.tasks.bowl import EIGENVALUES as PUBLISHED
from fallline.papers.claims._claim import DERIVED, Claim, Criterion, Effort, Measured, exact, mean_of
from fallline.papers.claims._records import by_seed, missing, paired, provenance, record_of
from fallline.papers.experiments.lodo_bowl import REFERENCE, hessian_error

PAPER = "Liao et al. 2023"


class Bowl:
    """A quadratic in a random basis, whose minimum takes a random step before every evaluation, or none."""

    def __init__(self, seed: int, eigenvalues: Tensor, drift: float = 1.0, noise: float = 0.0) -> None:
        self.draw, n = generator(seed, "bowl"), len(eigenvalues)
        self.eigenvalues, self.drift, self.noise = eigenvalues, drift, noise
        self.basis, _ = torch.linalg.qr(torch.randn(n, n, generator=self.draw, dtype=torch.float64))
        self.hessian = (self.basis * eigenvalues) @ self.basis.T
        self.minimum = torch.zeros(n, dtype=torch.float64)

    def gradient(self, x: Tensor) -> Tensor:
        """At x, after the minimum has moved; with noise of its own."""
        self.minimum += self.drift * torch.randn(len(x), generator=self.draw, dtype=torch.float64)
        g: Tensor = self.hessian @ (x - self.minimum)
        return g + self.noise * torch.randn(len(x), generator=self.draw, dtype=torch.float64)

    def lodo(self, start: float = 0.0, draw: torch.Generator | None = None, **settings: Any) -> LODO:
        """LODO at a point with all coordinates alike; its network is drawn from `draw`, else as the minimum's steps."""
        x = nn.Parameter(torch.full((len(self.eigenvalues),), start, dtype=torch.float64))
        return LODO([x], generator=draw or self.draw, **settings)

    def step(self, optimizer: LODO, factor: float = 1.0) -> Tensor:
        """A step on the gradient, times a factor. Returns the weights after it."""
        (x,) = optimizer.param_groups[0]["params"]
        x.grad = factor * self.gradient(x.detach())
        optimizer.step()
        weights: Tensor = x.detach()
        return weights


def operator(optimizer: LODO) -> Tensor:
    """G as a matrix."""
    return optimizer.networks[0].dense()


def follow(bowl: Bowl, steps: int, averaged: int = 0, start: float = 0.0, **settings: Any) -> Tensor:
    """G after so many steps, or its mean over the last ones, at every tenth of them."""
    n, optimizer = len(bowl.eigenvalues), bowl.lodo(start, **settings)
    total, count = torch.zeros(n, n, dtype=torch.float64), 0
    for step in range(steps):
        bowl.step(optimizer)
        if step >= steps - max(averaged, 1) and (steps - 1 - step) % 10 == 0:
            total, count = total + operator(optimizer), count + 1
    return total / count


def best_rate(H: Tensor) -> float:
    """The error of the best multiple of the identity: what one learning rate could do."""
    return hessian_error(H.trace() / (H @ H).trace() * torch.eye(len(H), dtype=H.dtype), H)


# --- the inverse Hessian ---

EIGENVALUES = torch.logspace(-1, 0, 5, dtype=torch.float64)
NETWORK: dict[str, Any] = {"lr": 1.0, "meta_lr": 3e-3, "beta": 0.0, "depth": 4}


def inverse(effort: Effort) -> Measured:
    """Where the minimum drifts."""
    steps, ratios, errors = effort.pick(1500, 700), [], []
    for seed in range(effort.pick(5, 3)):
        bowl = Bowl(seed, EIGENVALUES)
        errors.append(hessian_error(follow(bowl, steps, averaged=steps // 10, **NETWORK), bowl.hessian))
        ratios.append(errors[-1] / best_rate(bowl.hessian))
    return Measured([mean_of("‖I − G H‖ by the best rate's", ratios)], {"‖I − G H‖ / √n": errors})


def inverse_at_rest(effort: Effort) -> Measured:
    """Where it rests."""
    ratios = []
    for seed in range(effort.pick(5, 3)):
        bowl = Bowl(seed, EIGENVALUES, drift=0.0)
        G = follow(bowl, effort.pick(1500, 500), start=3.0, **NETWORK)
        ratios.append(hessian_error(G, bowl.hessian) / best_rate(bowl.hessian))
    return Measured([mean_of("‖I − G H‖ by the best rate's", ratios)])


# --- under gradient noise ---


def gain(eigenvalues: Tensor, drift: float, noise: float) -> Tensor:
    """The steady Kalman gain of each eigendirection, by iterating the filter's variance; drift and noise are white."""
    variance = torch.ones_like(eigenvalues)
    for _ in range(10_000):
        K = variance * eigenvalues / (eigenvalues**2 * variance + noise**2)
        variance = (1 - K * eigenvalues) * variance + drift**2
    return variance * eigenvalues / (eigenvalues**2 * variance + noise**2)


def kalman(effort: Effort, wanted: Any = gain) -> Measured:
    """LODO's operator against the gain and the inverse, in the Hessian's eigenbasis: many copies at once."""
    copies, steps, noise = effort.pick(200, 100), effort.pick(4000, 2000), 1.0
    eigenvalues = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    x = nn.Parameter(torch.zeros(3 * copies, dtype=torch.float64))
    draw, minimum = generator(0, "gain"), torch.zeros(3 * copies, dtype=torch.float64)
    k = eigenvalues.repeat_interleave(copies)
    settings: dict[str, Any] = {"lr": 1.0, "meta_lr": 5e-3, "beta": 0.0}
    optimizer = LODO([x], preconditioner="diagonal", **settings)
    total = torch.zeros(3 * copies, dtype=torch.float64)
    for step in range(steps):
        minimum += torch.randn(len(k), generator=draw, dtype=torch.float64)
        x.grad = k * (x.detach() - minimum) + noise * torch.randn(len(k), generator=draw, dtype=torch.float64)
        optimizer.step()
        if step >= steps // 2:
            total += optimizer.state[x]["theta"].flatten() * settings["lr"]
    G = (total / (steps - steps // 2)).view(3, copies)
    K = wanted(eigenvalues, 1.0, noise)
    readings = [mean_of(f"curvature {k:g}", G[row] / K[row]) for row, k in enumerate(eigenvalues.tolist())]
    details = {f"gain by the inverse, curvature {k:g}": float(K[row] * k) for row, k in enumerate(eigenvalues.tolist())}
    return Measured(readings, details)


def kalman_network(effort: Effort) -> Measured:
    """The same of the network, in a random basis: distance to the gain by the distance of the inverse to it."""
    eigenvalues, found, inverses = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), [], []
    for seed in range(effort.pick(4, 3)):
        bowl = Bowl(seed, eigenvalues, noise=1.0)
        steps = effort.pick(2000, 700)
        settings = {**NETWORK, "lr": 0.5, "meta_lr": 1e-3, "depth": 3}
        G = follow(bowl, steps, averaged=steps // 2, **settings)
        K = (bowl.basis * gain(eigenvalues, 1.0, 1.0)) @ bowl.basis.T
        H_inverse = (bowl.basis / eigenvalues) @ bowl.basis.T
        found.append(float((G - K).norm() / (H_inverse - K).norm()))
        inverses.append(float((G - H_inverse).norm() / (H_inverse - K).norm()))
    details = {"distance to the inverse by the same": inverses}
    return Measured([mean_of("distance to the Kalman gain", found)], details)


# --- what is learned first ---


class Halved:
    """Counts the steps until what is left to learn, [eigenvalues, ...], is half of what it was."""

    def __init__(self, left: Tensor) -> None:
        self.half, self.times, self.step = left / 2, torch.zeros(left.shape, dtype=torch.int64), 0

    def __call__(self, left: Tensor, steps: int = 1) -> bool:
        """So many steps later; whether all have halved."""
        self.step += steps
        self.times = torch.where((left < self.half) & (self.times == 0), self.step, self.times)
        return bool((self.times > 0).all())

    def lost(self) -> ArithmeticError:
        """To be raised where steps have run out."""
        return ArithmeticError(f"not learned in {self.step} steps: {self.times.tolist()}")


def halving(
    eigenvalues: Tensor, groups: int, copies: int, steps: int, left: float | None = None, **settings: Any
) -> Tensor:
    """Steps until the mean of 1 − G h over copies has halved, [eigenvalues, groups]; `ArithmeticError` if not.

    It is at first `left` everywhere, near the inverse; or, without, what the rate of 0.5 leaves, from 0.5 to 1.
    """
    lr, shape = 0.5, (len(eigenvalues), groups, copies)
    k = eigenvalues.view(-1, 1, 1).expand(shape)
    x = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    draw, minimum = generator(0, "halving"), torch.zeros(shape, dtype=torch.float64)
    optimizer = LODO([x], lr=lr, beta=0.0, preconditioner="diagonal", **settings)
    theta: Tensor = optimizer.state[x]["theta"]
    if left is not None:
        theta.copy_(((1 - left) / (lr * k)).reshape(theta.shape))

    def remains() -> Tensor:
        G = lr * theta.view(shape).mean(2)
        return 1 - G * eigenvalues[:, None]

    halved = Halved(remains())
    for _ in range(steps):
        minimum += torch.randn(shape, generator=draw, dtype=torch.float64)
        x.grad = k * (x.detach() - minimum)
        optimizer.step()
        if halved(remains()):
            return halved.times
    raise halved.lost()


def exponents(eigenvalues: Tensor, times: Tensor) -> Tensor:
    """Of the eigenvalue in the rate of learning, for each group, by regression of logarithms."""
    x, y = eigenvalues.log(), -times.double().log()
    x, y = x - x.mean(), y - y.mean(0)
    return (x @ y) / (x @ x)


SPECTRUM = torch.logspace(math.log10(0.2), 0, 8, dtype=torch.float64)


SGD: dict[str, Any] = {"meta_optimizer": "sgd", "meta_lr": 0.06}


def cube(effort: Effort) -> Measured:
    """With plain SGD for theta, near the inverse."""
    times = halving(SPECTRUM, effort.pick(8, 5), effort.pick(200, 60), 9000, left=0.1, **SGD)
    return Measured([mean_of("SGD for theta, from 0.9 / h", exponents(SPECTRUM, times))], by_curvature(times))


def cube_afar(effort: Effort) -> Measured:
    """With plain SGD for theta, from one rate for all."""
    times = halving(SPECTRUM, effort.pick(8, 5), effort.pick(100, 30), 8000, **SGD)
    return Measured([mean_of("SGD for theta, from 0.5", exponents(SPECTRUM, times))], by_curvature(times))


def evened(effort: Effort) -> Measured:
    """With Adam for theta, from one rate for all."""
    times = halving(SPECTRUM, effort.pick(8, 5), effort.pick(100, 30), 8000, meta_lr=1e-2)
    return Measured([mean_of("Adam for theta, from 0.5", exponents(SPECTRUM, times))], by_curvature(times))


def by_curvature(times: Tensor, eigenvalues: Tensor = SPECTRUM) -> dict[str, float]:
    """Steps to halve by eigenvalue, the mean over groups or seeds."""
    means = times.double().mean(1).tolist()
    return {f"steps to halve, curvature {k:.2g}": time for k, time in zip(eigenvalues.tolist(), means, strict=True)}


def learned(bowl: Bowl, steps: int, every: int = 10, **settings: Any) -> Tensor:
    """Steps until 1 − λ v' G v has halved, to within `every`, for each eigenvector; `ArithmeticError` if not."""
    optimizer = bowl.lodo(**settings)

    def remains() -> Tensor:
        return 1 - bowl.eigenvalues * torch.einsum("ij,ik,kj->j", bowl.basis, operator(optimizer), bowl.basis)

    halved = Halved(remains())
    for step in range(1, steps + 1):
        bowl.step(optimizer)
        if step % every == 0 and halved(remains(), every):
            return halved.times
    raise halved.lost()


def flat_last(effort: Effort) -> Measured:
    """Steps of the flattest direction by the most of the others, of the network in a random basis."""
    settings = {**NETWORK, "lr": 0.5}  # 1 would be the stiffest direction's inverse: nothing to learn there
    runs = [learned(Bowl(seed, EIGENVALUES), 3000, **settings) for seed in range(effort.pick(8, 4))]
    times = torch.stack(runs, 1)
    ratios = (times[0] / times[1:].max(0).values).tolist()
    return Measured([mean_of("flattest by the slowest other", ratios)], by_curvature(times, EIGENVALUES))


# --- invariances ---


def scale(effort: Effort, meta_eps: float = 1e-30, c: float = 1e-3) -> Measured:
    """How far the iterates go from those at scale 1 when the loss is multiplied by c and lr divided by it."""
    paths = []
    for by in (1.0, c):
        bowl = Bowl(0, EIGENVALUES)
        settings = {**NETWORK, "lr": NETWORK["lr"] / by, "meta_eps": meta_eps}
        optimizer = bowl.lodo(1.0, generator(0, "network"), **settings)
        paths.append(torch.stack([bowl.step(optimizer, by).clone() for _ in range(effort.pick(200, 100))]))
    off = (paths[1] - paths[0]).norm(dim=1) / paths[0].norm(dim=1)
    return Measured([exact(f"loss × {c:g}", float(off.max()))])


def positive(effort: Effort, preconditioner: str = "network") -> Measured:
    """The most negative eigenvalue of G, and its asymmetry, over a run; both by its largest eigenvalue."""
    bowl = Bowl(0, EIGENVALUES)
    optimizer = bowl.lodo(**{**NETWORK, "depth": 16, "meta_lr": 0.05, "preconditioner": preconditioner})
    negative = skew = 0.0
    first = operator(optimizer)
    for step in range(effort.pick(200, 100)):
        bowl.step(optimizer)
        if step % 10 == 0:
            G = operator(optimizer)
            values = torch.linalg.eigvalsh((G + G.T) / 2)
            negative = max(negative, float(-values[0] / values.abs().max()))
            skew = max(skew, float((G - G.T).abs().max() / values.abs().max()))
    identity = float((first - NETWORK["lr"] * torch.eye(5, dtype=torch.float64)).abs().max())
    return Measured(
        [exact("most negative eigenvalue", negative), exact("asymmetry", skew), exact("start less lr I", identity)]
    )


# --- records ---


def inverse_bowl(effort: Effort) -> Measured:
    """On the paper's bowl, from the record."""
    record = record_of(effort, "lodo-bowl")
    if record is None:
        return missing("lodo-bowl")
    runs = [one["outcome"] for one in record["runs"] if one["run"]["optimizer"] == "lodo"]
    errors = [one["result"]["Hessian error"] for one in runs if one["status"] == "finished"]
    if len(errors) < 2:
        return Measured((), provenance(record), "the record has too few runs of LODO")
    rate = best_rate(PUBLISHED.diag())
    reference = float(REFERENCE["lodo"][1].split()[0])
    details = {"steps": record["results"]["steps"], "‖I − G H‖ / √n of the best rate": rate}
    details |= {"by the best rate's, 100,000 steps of an earlier program of ours": reference / rate}
    reading = mean_of("‖I − G H‖ by the best rate's", [error / rate for error in errors])
    return Measured([reading], provenance(record) | details)


def ablations(effort: Effort, others: Sequence[str] = ("lodo-diagonal",)) -> Measured:
    """The noisy bowl's loss, LODO's by that of a simpler preconditioner, less 1, from the record."""
    record = record_of(effort, "lodo-bowl")
    if record is None:
        return missing("lodo-bowl")
    losses = by_seed(record, "score")
    readings = []
    for other in others:
        change = [ours / theirs - 1 for ours, theirs in paired(losses, "lodo", other)]
        if len(change) > 1:
            readings.append(mean_of(f"LODO by {other}, less 1", change))
    details = provenance(record) | {"steps": record["results"]["steps"]}
    return Measured(readings, details, "" if readings else "the record has too few runs of both")


def speed(effort: Effort) -> Measured:
    """CPU time of a run beside Adam's on the MNIST network, from the record."""
    record = record_of(effort, "lodo-mnist")
    if record is None:
        return missing("lodo-mnist")
    ratios = [ours / theirs for ours, theirs in paired(by_seed(record, "cpu_seconds"), "LODO", "Adam")]
    if len(ratios) < 2:
        return Measured((), provenance(record), "the record has too few runs of both")
    return Measured([mean_of("CPU time of LODO by Adam's", ratios)], provenance(record))


CLAIMS = (
    Claim(
        "lodo-inverse",
        "Where the minimum never rests, its operator approaches the inverse Hessian: in five dimensions.",
        f"{PAPER}, abstract; the size is ours",
        Criterion("‖I − G H‖ by that of the best learning rate", at_most=0.5),
        inverse,
        "A quadratic in five dimensions, eigenvalues 0.1 to 1 in a random basis, whose minimum takes a standard normal "
        "step before every evaluation; gradients are exact. 1,500 steps, depth 4, no momentum; paired with the best "
        "multiple of the identity.",
        "In few dimensions and at a condition number of 10 it learns most of the inverse Hessian from losses and "
        "gradients alone.",
        "It stays near what a single learning rate would do.",
    ),
    Claim(
        "lodo-inverse-bowl",
        "The same on the paper's noisy bowl, in a hundred dimensions.",
        f"{PAPER}, abstract",
        Criterion("‖I − G H‖ by that of the best learning rate", at_most=0.5),
        inverse_bowl,
        "The record of `fallline repro lodo-bowl`: eigenvalues 0.001 to 1, the program's tuned settings, G at the end "
        "of each seed's run, beside the best multiple of the identity.",
        "It learns most of the inverse Hessian also where the condition number is 1,000.",
        "In the steps of the record it does not, or not yet: the flat directions count as much in this distance as the "
        "others, and are learned last.",
    ),
    Claim(
        "lodo-inverse-at-rest",
        "The same in five dimensions where the minimum rests.",
        "ours: the abstract speaks of noisy landscapes",
        Criterion("‖I − G H‖ by that of the best learning rate", at_most=0.5),
        inverse_at_rest,
        "The quadratic of `lodo-inverse` without drift, from a point away from the minimum.",
        "No noise is needed.",
        "When the weights have arrived there is nothing left to learn from: noise or drift is what shows every "
        "direction.",
    ),
    Claim(
        "lodo-flat-last",
        "Flat directions are learned last.",
        DERIVED,
        Criterion(
            "steps of the flattest direction to halve what is left to learn, by the most of the others", at_least=1.0
        ),
        flat_last,
        "The quadratic and network of `lodo-inverse`, from lr 0.5: steps until 1 − λ vᵀ G v has halved, for each of "
        "the five eigenvectors v, looked at every ten steps.",
        "What is still wrong is wrong in the flat directions, where it costs least; also with Adam for theta, and for "
        "a network in a random basis.",
        "What is learned last is not the flattest direction.",
    ),
    Claim(
        "lodo-kalman",
        "Under gradient noise it goes to the steady Kalman gain, and not to the inverse Hessian.",
        DERIVED,
        Criterion("G by the Kalman gain", 0.9, 1.1),
        kalman,
        "LODO-Diagonal on separate parabolas of curvature 0.5 to 2, minima that drift by 1 and gradient noise of 1, "
        "many copies of each; G averaged over the second half, beside the gain of the filter's Riccati equation.",
        "It learns how far a noisy gradient is to be trusted, as a Kalman filter would.",
        "It goes elsewhere.",
    ),
    Claim(
        "lodo-kalman-network",
        "So does the network in a random basis.",
        DERIVED,
        Criterion("distance of G to the gain, by that of the inverse Hessian to it", at_most=0.25),
        kalman_network,
        "Three dimensions, eigenvalues 0.5 to 2, the same drift and noise; G averaged over the second half of 2,000 "
        "steps.",
        "The network's operator is near the gain, and far from the inverse.",
        "The network's operator is not near the gain.",
    ),
    Claim(
        "lodo-cube",
        "Near the inverse the rates at which it learns span the cube of the condition number.",
        DERIVED,
        Criterion("exponent of the eigenvalue in the rate", 2.75, 3.25),
        cube,
        "LODO-Diagonal with SGD for theta on parabolas of curvature h from 0.2 to 1 with drifting minima, from G = "
        "0.9 / h: steps until 1 − G h has halved, regressed on the curvature. The rate of an entry (i, j) of G "
        "should go as λᵢ λⱼ² σⱼ², σ² being the variance of the error, here nearly the drift's; the diagonal alone is "
        "tested.",
        "A direction ten times flatter is learned a thousand times more slowly, where errors are no larger than the "
        "drift makes them.",
        "The rates have another exponent.",
    ),
    Claim(
        "lodo-cube-afar",
        "The same from afar.",
        DERIVED,
        Criterion("exponent of the eigenvalue in the rate", 2.75, 3.25),
        cube_afar,
        "The same from G = 0.5 for all: 1 − G h is at first 0.5 where h = 1, and 0.9 where h = 0.2.",
        "A direction ten times flatter is learned a thousand times more slowly, from wherever it starts.",
        "The cube is that of equal excitation. While a flat direction is not learned its error accumulates, which "
        "speeds it up: the rates span less.",
    ),
    Claim(
        "lodo-adam",
        "Adam for theta evens the rates out.",
        DERIVED,
        Criterion("exponent of the eigenvalue in the rate", at_most=1.75),
        evened,
        "`lodo-cube-afar` with Adam for theta.",
        "With Adam, the default, flat directions are learned far less slowly than with SGD.",
        "Adam does not help flat directions.",
    ),
    Claim(
        "lodo-loss-scale",
        "Multiplying the loss by c changes nothing, if lr is divided by c and Adam's epsilon vanishes.",
        DERIVED,
        Criterion("largest relative distance of an iterate to that at scale 1", at_most=1e-6),
        scale,
        "The bowl of `lodo-inverse` with the loss times 1/1000 and `meta_eps=1e-30`.",
        "Only lr has the loss's unit.",
        "The scale of the loss matters.",
    ),
    Claim(
        "lodo-loss-scale-eps",
        "The same with the epsilon of the authors' program, 1e-7.",
        DERIVED,
        Criterion("largest relative distance of an iterate to that at scale 1", at_most=1e-6),
        functools.partial(scale, meta_eps=1e-7),
        "The same with `meta_eps=1e-7`, the default.",
        "The epsilon is small enough not to matter.",
        "Meta-gradients are products of two gradients, and epsilon is not small beside them: where losses are tiny, "
        "`meta_eps` is a setting.",
    ),
    Claim(
        "lodo-positive",
        "Its operator is symmetric and positive semidefinite whatever it learns, and starts as lr times identity.",
        DERIVED,
        Criterion("violation, by the largest eigenvalue", at_most=1e-12),
        positive,
        "Sixteen layers on the bowl with a meta learning rate fifty times the default; G every ten steps.",
        "A step never goes uphill along the momentum.",
        "G can become indefinite.",
    ),
    Claim(
        "lodo-ablations",
        "A simpler preconditioner, the diagonal one, does worse on the noisy bowl.",
        f"{PAPER}, abstract, of simpler ones in general",
        Criterion("loss of LODO by the diagonal one's, less 1", at_most=0.0),
        ablations,
        "The record of `fallline repro lodo-bowl`: mean loss over the last tenth, paired seeds, Student's interval.",
        "The network does better there than a diagonal that learns in the same way.",
        "The diagonal one does as well.",
    ),
    Claim(
        "lodo-speed",
        "It trains a network of 95,000 weights at a speed comparable to usual optimizers: at most twice the time.",
        f"{PAPER}, abstract",
        Criterion("CPU time of training by Adam's", at_most=2.0),
        speed,
        "The record of `fallline repro lodo-mnist`: CPU time of runs with the same steps, paired seeds.",
        "Beside the model's own work its cost is bearable, where weights are shared by many pixels.",
        "It takes more than twice as long.",
    ),
)
