"""CoolMomentum's cooling: linear against exponential, and controls that anneal the learning rate instead.

As momentum cools, CoolMomentum's effective learning rate lr (1 + rho) / (2 (1 - rho)) falls, 199-fold from rho = 0.99.
Is it the momentum that helps, or the fall? `MatchedSGD` keeps its momentum and takes the very same fall.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.bench.common.spaces import Choice, Range, Setting
from fallline.coolmomentum import SCHEDULES
from fallline.papers.experiments._experiment import Case, Entry, Experiment
from fallline.papers.experiments.coolmomentum_cifar import PAPER


class MatchedSGD(torch.optim.SGD):
    r"""SGD with a constant momentum m, whose effective learning rate is CoolMomentum's at every step.

    Momentum multiplies a steady gradient by :math:`1 / (1 - m)`, hence
    :math:`\eta_t = (1 - m) \, \eta \, (1 + \rho_t) / (2 (1 - \rho_t))`.

    Args:
        params: parameters or parameter groups.
        lr: CoolMomentum's learning rate :math:`\eta`.
        rho_0: its initial momentum.
        cool_steps: its steps until the momentum would be 0.
        schedule: a name of `fallline.coolmomentum.SCHEDULES`.
        momentum: of this optimizer.
        weight_decay: L2 penalty, part of the gradient as in CoolMomentum.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        *,
        rho_0: float = 0.99,
        cool_steps: float,
        schedule: str = "exponential",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        for group in self.param_groups:
            group.update(rho_0=rho_0, cool_steps=cool_steps, schedule=schedule, cooled=0)

    def rate(self, group: Mapping[str, Any]) -> float:
        """The learning rate of the coming step."""
        s = torch.tensor(min(1.0, group["cooled"] / group["cool_steps"]), dtype=torch.float64)
        rho = float(SCHEDULES[group["schedule"]](s, group["rho_0"]))
        return float((1 - group["momentum"]) * group["lr"] * (1 + rho) / (2 * (1 - rho)))

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """A step of SGD at the matched rate; `lr` in the groups stays CoolMomentum's."""
        kept = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self.rate(group)
        try:
            return super().step(closure)
        finally:
            for group, lr in zip(self.param_groups, kept, strict=True):
                group["lr"] = lr
                group["cooled"] += 1


EPOCH = 45_000 // 128
"""Steps of an epoch at full scale, where 5,000 images are held out of training."""

SMALL_STEPS = 191
"""Of a run at CPU scale: half an epoch of 49,000 images."""

DECAY = 5e-4
"""Weight decay of all."""

MATCHED = f"{__name__}:MatchedSGD@constant"

SEARCH: Mapping[str, float | Range | Choice] = {"lr": 10, "rho_0": Range(0.01, 0.1, "one minus log")}
"""The same for all that cool and for what matches them, so that each trial of one has its match among the other's."""


def annealed(label: str, optimizer: str, schedule: str, source: str, **steps: int) -> Entry:
    """CoolMomentum, or what matches it, under a schedule."""
    settings: dict[str, Setting] = {"lr": 0.01, "rho_0": 0.99, "schedule": schedule, "weight_decay": DECAY, **steps}
    return Entry(label, optimizer, settings, SEARCH, source)


def entries(cool_steps: int, whole: bool = True) -> tuple[Entry, ...]:
    """Who is compared.

    Args:
        cool_steps: steps until the momentum is 0.
        whole: whether that is the length of the run, to which the contender `coolmomentum` keeps of itself.
    """
    cool = "coolmomentum@constant" if whole else "fallline.coolmomentum:CoolMomentum@constant"
    steps = {} if whole else {"cool_steps": cool_steps}
    readme, control = "the README of CoolMomentum's program", "not published: a control"
    return (
        annealed("linear", cool, "linear", readme, **steps),
        annealed("exponential", cool, "exponential_temperature", readme, **steps),
        annealed("SGD as linear", MATCHED, "linear", f"{control}, momentum 0.9", cool_steps=cool_steps),
        annealed(
            "SGD as exponential",
            MATCHED,
            "exponential_temperature",
            f"{control}, momentum 0.9",
            cool_steps=cool_steps,
        ),
        Entry(
            "constant momentum",
            "fallline.coolmomentum:CoolMomentum@constant",
            {"lr": 0.01, "rho_0": 0.9, "weight_decay": DECAY},
            {"lr": 10, "rho_0": Range(0.01, 0.3, "one minus log")},
            f"{control}, CoolMomentum that does not cool",
        ),
        Entry(
            "SGD, cosine",
            "sgd@cosine",
            {"lr": 0.1, "momentum": 0.9, "weight_decay": DECAY},
            {"lr": 10, "momentum": Range(0.01, 0.3, "one minus log")},
            f"{control}, the usual way",
        ),
    )


def case(epochs: int, linear: float, exponential: float, which: str) -> Case:
    """A pair of curves of the README's figure: 100 epochs, of which the first `epochs` cool."""
    return Case(
        f"CIFAR-10, ResNet-34, 100 epochs, cooling over {epochs}",
        "cifar10-resnet34@epochs=100,batch=128",
        entries(epochs * EPOCH, whole=epochs == 100),
        published={"linear": linear, "exponential": exponential},
        source=f"the README of CoolMomentum's program, read off a figure to 0.05: test accuracy, {which}; one seed",
    )


class CoolMomentumCooling(Experiment):
    """Two ways to cool, against SGD with a learning rate that falls as theirs does."""

    name: ClassVar[str] = "coolmomentum-cooling"
    summary: ClassVar[str] = (
        "CIFAR-10 with ResNet-34: CoolMomentum cooled linearly and exponentially, and controls: SGD whose learning "
        "rate matches each of them at every step, constant momentum, SGD with a cosine; at CPU scale ResNet-8"
    )
    paper: ClassVar[str] = f"{PAPER}; the README of its program, section of September 2025"
    full: ClassVar[tuple[Case, ...]] = (
        case(100, 95.3, 94.3, "the last epoch"),
        case(50, 94.7, 92.9, "mean of the plateau"),
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "CIFAR-10, ResNet-8 of half the width, half an epoch",
            "cifar10-resnet8@width=8,epochs=0.5,batch=128,evaluations=4,validation=1000",
            tuple(entry for entry in entries(SMALL_STEPS) if entry.label != "SGD as exponential"),
        ),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The controls are not in the paper. `SGD as linear` has momentum 0.9 and the effective learning rate of "
        "CoolMomentum cooled linearly: if it does as well, it was the fall that helped, not the cooling momentum.",
        "The README's figure calls exponential what is `exponential_temperature` here; the article's differs a little.",
        "Linear cooling is Demon's rule (Chen et al. 2019) times (1 + rho) / 2.",
        "Images are held out of training for validation, so that an epoch has 351 steps, not 391.",
        "Full scale: each is run at one setting, the README's; the controls' are chosen here. `--trials` searches.",
        "CPU scale: ResNet-8 with 8, 16 and 32 channels instead of ResNet-34, half an epoch (191 steps) instead of "
        "100, and all of it cools. A momentum of 0.99 remembers 100 steps, half of such a run, hence trials with less.",
    )
    run_seconds: ClassVar[float] = 30.0
    gpu_time: ClassVar[str] = "about twice ResNet-18's; not measured here"
    cpu_time: ClassVar[str] = "about 50 minutes an epoch on one core: 80 hours a run"

    def code(self) -> Sequence[Any]:
        """The control, whose source no optimizer's fingerprint has."""
        return (MatchedSGD,)
