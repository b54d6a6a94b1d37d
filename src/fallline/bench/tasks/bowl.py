"""The noisy bowl: a quadratic whose minimum takes a random step before every evaluation.

The first experiment of LODO (Liao, Dangovski, Foerster and Soljačić, 2023). No network and no data: the optimizer must
follow a target that never rests, in a landscape a thousand times flatter in one direction than in another.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fallline.bench.common.spaces import Choice, Range, Setting
from fallline.bench.tasks._task import Task

DIMENSION = 100
EIGENVALUES = torch.logspace(-3, 0, DIMENSION, dtype=torch.float64)
FLOOR = 0.5 * EIGENVALUES.sum().item()
"""Half the trace of the Hessian, 7.41: a perfect Newton step reaches the minimum just before it moves on."""


class Landscape(nn.Module):
    """The point `x`, at first the origin, and the Hessian: a random basis, eigenvalues even over their logarithm."""

    hessian: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(DIMENSION))
        # QR of a Gaussian matrix: columns of either sign make the same Hessian, so the basis is uniform.
        basis, _ = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, dtype=torch.float64))
        self.register_buffer("hessian", ((basis * EIGENVALUES) @ basis.T).float())

    def forward(self, minimum: Tensor) -> Tensor:
        """Half the squared distance in the Hessian's metric, shape (1,)."""
        away = self.x - minimum
        return 0.5 * (away @ self.hessian @ away).reshape(1)


class Bowl(Task):
    """Tracking a minimum that takes a standard normal step before every evaluation, in 100 dimensions."""

    name = "bowl"
    summary = (
        "a quadratic in 100 dimensions, Hessian eigenvalues 0.001 … 1, whose minimum takes a random step before every "
        "evaluation; 2,000 steps; score: mean loss over the last 200"
    )
    steps = 2000
    evaluations = 40
    schedule = "constant"  # the target never rests, so a rate that decays loses it
    held_out = False
    floor = FLOOR
    floor_name = "½ tr H, a perfect Newton step"
    reference = (16.0, "SGD and Adam have 15 in `fallline repro lodo-bowl`")
    equivalence = 0.01 * FLOOR  # the loss at the start, where the minimum is near, is no scale

    @property
    def spaces(self) -> Mapping[str, Mapping[str, Range | Choice | Setting]]:
        """The same range of learning rates for all: steps must be of the order of the target's.

        No weight decay: weights pulled to the origin lose a target that wanders off. arTuRO's `lr` is no length but a
        bound on ½ΣΛΔ²: its settings come from pilot runs.
        """
        lr, momentum = Range(0.1, 10.0), Range(0.05, 1.0, "one minus log")
        averaged = Range(0.05, 0.9, "one minus log")  # which Schedule-Free does not take as 0
        along: dict[str, Range | Choice | Setting] = {"q": Range(1e-2, 100.0), "beta": momentum, "weight_decay": 0.0}
        filtering: Mapping[str, Range | Choice | Setting] = {"lr": lr, "q": Range(1e-2, 100.0), "weight_decay": 0.0}
        return {
            "koala-v": filtering,
            "koala-m": {"lr": lr, "qv": Range(1e-2, 100.0), "weight_decay": 0.0},
            "arturo": {"lr": Range(1.0, 300.0), "reg_weight": Range(1e-2, 2.0), "process_noise": Range(1e-4, 1.0)},
            "koala-pp": filtering,
            **dict.fromkeys(("koala-orthogonal", "koala-orthogonal-unmeasured", "koala-adam"), along),
            "koala-gradient": along | {"q": Range(1.0, 1e4)},  # one length for all weights together
            "arturo-second-moment": {"lr": Range(1.0, 300.0), "process_noise": Range(0.03, 30.0), "weight_decay": 0.0},
            "schedulefree-adamw": {"lr": lr, "beta1": averaged, "weight_decay": 0.0},
            "schedulefree-sgd": {"lr": lr, "momentum": averaged, "weight_decay": 0.0},
            "lodo": {"lr": lr, "meta_lr": Range(1e-4, 1e-2), "beta": momentum},
            # Nothing cools here, so the schedule does not come into play.
            "coolmomentum": {"lr": lr, "rho_0": momentum, "schedule": "exponential"},
            "sgd": {"lr": lr, "momentum": momentum, "weight_decay": 0.0},
            "adamw": {"lr": lr, "beta1": momentum, "weight_decay": 0.0},
        }

    def model(self) -> nn.Module:
        """The landscape; its basis comes from the run's seed."""
        return Landscape()

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        """Where the minimum is at each evaluation, shape (100,)."""
        minimum = torch.zeros(DIMENSION)
        while True:
            minimum = minimum + torch.randn(DIMENSION, generator=order)
            yield minimum

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The loss at this step's minimum, shape (1,)."""
        losses: Tensor = model(batch)
        return losses
