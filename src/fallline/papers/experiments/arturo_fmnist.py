"""arTuRO on Fashion-MNIST: its small CNN, and a ResNet-18 (Dahlinger et al. 2023, the settings of its program)."""

from collections.abc import Mapping
from typing import ClassVar

from fallline.arturo.arturo import PUBLISHED
from fallline.bench.common.spaces import Range, Setting
from fallline.papers.experiments._experiment import Case, Entry, Experiment

PAPER = (
    "Dahlinger, Becker, Hüttenrauch and Neumann, Information-Theoretic Trust Regions for Stochastic Gradient-Based "
    "Optimization, OPT 2023, arXiv 2310.20574"
)

NOT_FOUND = "Published numbers: not found. The paper's tables and curves could not be reached, only its program."

BOUND_DROPS, RATE_DROPS = "step-0.006-0.5-0.75", "step-0.1-0.5-0.75"
"""At half and at three quarters of the run: arTuRO's bound, whose square root is the step's length; and the rates of
the others."""


def entries(
    key: str, sgd: Mapping[str, Setting], adam: Mapping[str, Setting], adamw: Mapping[str, Setting]
) -> tuple[Entry, ...]:
    """arTuRO and its baselines at the settings that its program ships.

    Args:
        key: of `fallline.arturo.arturo.PUBLISHED`.
        sgd: SGD's settings.
        adam: Adam's.
        adamw: AdamW's.
    """
    source = "Dahlinger et al. 2023, shipped with its program"
    return (
        Entry(
            "arTuRO",
            f"arturo@{BOUND_DROPS}",
            {**PUBLISHED[key], "nu": 1.3, "prior_prec": 0.0015, "var_init": 0.01, "filter_var_init": 5e-5},
            {"lr": 10, "reg_weight": 3, "process_noise": 3},
            source,
        ),
        Entry(
            "SGD",
            f"sgd@{RATE_DROPS}",
            sgd,
            {"lr": 10, "momentum": Range(0.03, 0.3, "one minus log")},
            source,
        ),
        Entry(
            "Adam",
            f"adamw@{RATE_DROPS}",
            {**adam, "weight_decay": 0.0},
            {"lr": 10, "beta1": Range(0.03, 0.3, "one minus log")},
            f"{source}; run as AdamW without weight decay, which is the same, as the program passes none to Adam",
        ),
        Entry(
            "AdamW",
            f"adamw@{RATE_DROPS}",
            adamw,
            {"lr": 10, "beta1": Range(0.03, 0.3, "one minus log")},
            source,
        ),
    )


CNN = entries(
    "fashion-mnist-cnn",
    {"lr": 0.0710, "momentum": 0.866, "weight_decay": 2.25e-4},
    {"lr": 1.01e-3, "beta1": 0.945, "beta2": 0.9903},
    {"lr": 1.00e-3, "beta1": 0.922, "beta2": 0.99994, "weight_decay": 1.42e-4},
)

RESNET18 = entries(
    "fashion-mnist-resnet18",
    {"lr": 0.137, "momentum": 0.854, "weight_decay": 1.96e-3},
    {"lr": 0.0451, "beta1": 0.908, "beta2": 0.999999},
    {"lr": 0.0187, "beta1": 0.863, "beta2": 0.999999, "weight_decay": 3.96e-5},
)


class ArturoFashion(Experiment):
    """arTuRO against SGD, Adam and AdamW on Fashion-MNIST."""

    name: ClassVar[str] = "arturo-fmnist"
    summary: ClassVar[str] = (
        "Fashion-MNIST with a CNN of 0.39 M parameters and with ResNet-18, batch 255: arTuRO, SGD, Adam and AdamW; at "
        "CPU scale the same CNN for 0.75 epochs"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = (
        Case("Fashion-MNIST, CNN, 120 epochs", "fmnist-cnn@epochs=120,batch=255", CNN, source="not found"),
        Case(
            "Fashion-MNIST, ResNet-18, 120 epochs",
            "fmnist-resnet18@epochs=120,batch=255,stem=imagenet",
            RESNET18,
            source="not found",
        ),
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "Fashion-MNIST, CNN, 0.75 epochs",
            "fmnist-cnn@epochs=0.75,batch=255,evaluations=4,validation=1000",
            CNN[:3],
            source="not found",
        ),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        NOT_FOUND,
        "Images are held out of training for validation, where the program trains on all 60,000; the last, incomplete "
        "batch of an epoch is dropped.",
        "arTuRO keeps the bound in every step, where its program bisects and may miss it; the step is exact only with "
        "`newton_iters` of 4 or more, and these are runs of the default. A curvature below 0 is taken as 0.",
        "The program measures before each epoch, and so never after the last; here the model is measured at the end.",
        "CPU scale: 0.75 epochs instead of 120, with the drops at the same shares of the run. AdamW is left out: "
        "in so few steps it is Adam.",
    )
    run_seconds: ClassVar[float] = 55.0
    gpu_time: ClassVar[str] = "not measured, and no figure found"
    cpu_time: ClassVar[str] = (
        "36 s an epoch of the CNN, 2.6 minutes of ResNet-18, on one core: 72 minutes and 5 hours a run"
    )
