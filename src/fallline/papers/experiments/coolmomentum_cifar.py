"""CoolMomentum on CIFAR-10: ResNet-20, batch 32, 200 epochs (Borysenko and Byshkin 2021)."""

from typing import ClassVar

from fallline.bench.common.spaces import Range
from fallline.papers.experiments._experiment import Case, Entry, Experiment

PAPER = (
    "Borysenko and Byshkin, CoolMomentum: a method for stochastic optimization by Langevin dynamics with simulated "
    "annealing, Scientific Reports 11, 10705 (2021)"
)

DROPS = "step-0.1-0.4-0.6-0.8"

DECAY = 2e-4
"""The gradient of Keras's penalty of 1e-4 times the square."""

ENTRIES = (
    Entry(
        "CoolMomentum",
        "coolmomentum@constant",
        {"lr": 0.01, "rho_0": 0.99, "schedule": "exponential", "weight_decay": DECAY},
        {"lr": 10, "rho_0": Range(0.003, 0.1, "one minus log")},
        "Borysenko and Byshkin 2021: cools over the whole run",
    ),
    Entry(
        "Adam",
        f"adam@{DROPS}",
        {"lr": 1e-3, "weight_decay": DECAY},
        {"lr": 10},
        "Borysenko and Byshkin 2021",
    ),
    Entry(
        "SGD",
        f"sgd@{DROPS}",
        {"lr": 0.01, "momentum": 0.9, "weight_decay": DECAY},
        {"lr": 10, "momentum": Range(0.03, 0.3, "one minus log")},
        "Borysenko and Byshkin 2021",
    ),
)


class CoolMomentumCifar(Experiment):
    """CoolMomentum without a schedule against Adam and SGD with one."""

    name: ClassVar[str] = "coolmomentum-cifar"
    summary: ClassVar[str] = (
        "CIFAR-10 with ResNet-20, batch 32, 200 epochs: CoolMomentum, and Adam and SGD with drops of the learning "
        "rate; at CPU scale ResNet-8 for one epoch"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = (
        Case(
            "CIFAR-10, ResNet-20, 200 epochs",
            "cifar10-resnet20@epochs=200,batch=32",
            ENTRIES,
            published={"CoolMomentum": 91.7, "Adam": 92.0, "SGD": 91.8},
            source="Borysenko and Byshkin 2021, read off a figure to 0.3; one seed",
        ),
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "CIFAR-10, ResNet-8 of half the width, 1 epoch",
            "cifar10-resnet8@width=8,epochs=1,batch=32,evaluations=4,validation=1000",
            ENTRIES,
        ),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Images are held out of training for validation, where the paper trains on all 50,000.",
        "The baselines' rates drop to 0.1, 0.01 and 0.001 of themselves after 40, 60 and 80 % of the run; the paper's "
        "last drop, to 0.0005 after 90 %, is left out.",
        "The penalty on the weights acts on all parameters, in the paper's Keras program on those of the convolutions.",
        "Images are cropped at random after padding by 4 pixels, in the paper's program shifted by up to 10 %; pixels "
        "are brought to mean 0 and variance 1 by channel, there the mean image is subtracted.",
        "CPU scale: ResNet-8 with 8, 16 and 32 channels instead of ResNet-20, and one epoch instead of 200; the "
        "momentum cools over that one epoch, and the drops come at the same shares of it.",
    )
    run_seconds: ClassVar[float] = 55.0
    gpu_time: ClassVar[str] = "not measured, and no figure found"
    cpu_time: ClassVar[str] = "3 to 5 minutes an epoch on one core: 10 to 17 hours a run"
