"""How much a method minds the initialisation: SGD against KOALA-M (Davtyan et al. 2022, table 5)."""

from typing import ClassVar

from fallline.papers.experiments._experiment import Case, Experiment
from fallline.papers.experiments.koala_cifar import DROPS, PAPER, entries

SCHEMES = {
    "xavier-normal": ("Xavier, normal", 26.71, 23.34),
    "xavier-uniform": ("Xavier, uniform", 26.90, 23.40),
    "kaiming-uniform": ("Kaiming, uniform", 27.82, 23.35),
    "orthogonal": ("orthogonal", 26.83, 23.27),
}
"""By the name in `INITIALISATIONS` of the networks: in words, and table 5's top-1 errors of SGD and KOALA-M."""

RIVALS = ("SGD", "KOALA-M")

SMALL = "cifar10-resnet8@width=8,epochs=0.5,batch=128,evaluations=4,validation=1000"


def case(scheme: str) -> Case:
    """A column of table 5."""
    words, *errors = SCHEMES[scheme]
    return Case(
        f"CIFAR-100, ResNet-18, 100 epochs, {words}",
        f"cifar100-resnet18@epochs=100,batch=128,init={scheme}",
        tuple(entry for entry in entries(DROPS["cifar100", 100]) if entry.label in RIVALS),
        "error",
        dict(zip(RIVALS, errors, strict=True)),
        "Davtyan et al. 2022, table 5: top-1 error",
    )


def small(scheme: str) -> Case:
    """The same for two cores."""
    return Case(
        f"CIFAR-10, ResNet-8 of half the width, half an epoch, {SCHEMES[scheme][0]}",
        f"{SMALL},init={scheme}",
        tuple(entry for entry in entries(DROPS["cifar10", 100]) if entry.label in RIVALS),
        "error",
        trial_task=f"{SMALL},init=kaiming-normal",
    )


class KoalaAblationInit(Experiment):
    """SGD and KOALA-M from four initialisations."""

    name: ClassVar[str] = "koala-ablation-init"
    summary: ClassVar[str] = (
        "SGD against KOALA-M from four initialisations, each with one setting for all of them: CIFAR-100 with "
        "ResNet-18; at CPU scale CIFAR-10 with ResNet-8"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = tuple(map(case, SCHEMES))
    cpu: ClassVar[tuple[Case, ...]] = tuple(map(small, SCHEMES))
    deviations: ClassVar[tuple[str, ...]] = (
        "Images are held out of training for validation, where the paper trains on all 50,000.",
        "Drawn anew are the weights of convolutions and of the linear layer; whether the paper's program left any of "
        "them as they were is not known. Kaiming's and Xavier's are torch's functions, Kaiming's for ReLU.",
        "CPU scale: CIFAR-10 instead of CIFAR-100, ResNet-8 with 8, 16 and 32 channels instead of ResNet-18, half an "
        "epoch instead of 100. A setting is chosen once for each method, from its trials with Kaiming's normal "
        "initialisation, which no case has, and used for all.",
    )
    run_seconds: ClassVar[float] = 30.0
    gpu_time: ClassVar[str] = (
        "ResNet-18 on CIFAR-100: 10 minutes for 50 epochs on one GPU (FOB), so about 20 a run; not measured here"
    )
    cpu_time: ClassVar[str] = "25 minutes an epoch for ResNet-18 on one core: about 40 hours a run"
