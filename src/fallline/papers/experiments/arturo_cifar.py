"""arTuRO on CIFAR-10 and CIFAR-100: its CNN, and a ResNet-34 (Dahlinger et al. 2023, the settings of its program)."""

from typing import ClassVar

from fallline.papers.experiments._experiment import Case, Experiment
from fallline.papers.experiments.arturo_fmnist import NOT_FOUND, PAPER, entries

CNN = {
    data: entries(
        f"{data}-cnn",
        {"lr": 0.0178, "momentum": 0.947, "weight_decay": 1.63e-4},
        {"lr": 1.13e-3, "beta1": 0.851, "beta2": 0.99894},
        {"lr": 1.13e-3, "beta1": 0.851, "beta2": 0.99894, "weight_decay": 1.09e-3},
    )
    for data in ("cifar10", "cifar100")
}

RESNET34 = {
    "cifar10": entries(
        "cifar10-resnet34",
        {"lr": 0.0565, "momentum": 0.866, "weight_decay": 1.70e-3},
        {"lr": 6.65e-3, "beta1": 0.890, "beta2": 0.99939},
        {"lr": 6.65e-3, "beta1": 0.890, "beta2": 0.99939, "weight_decay": 4.47e-4},
    ),
    "cifar100": entries(
        "cifar100-resnet34",
        {"lr": 0.0680, "momentum": 0.867, "weight_decay": 1.80e-3},
        {"lr": 1.61e-3, "beta1": 0.865, "beta2": 0.99995},
        {"lr": 1.25e-3, "beta1": 0.859, "beta2": 0.9988, "weight_decay": 1.80e-3},
    ),
}

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


class ArturoCifar(Experiment):
    """arTuRO against SGD, Adam and AdamW on CIFAR-10 and CIFAR-100."""

    name: ClassVar[str] = "arturo-cifar"
    summary: ClassVar[str] = (
        "CIFAR-10 and CIFAR-100 with a CNN of 0.65 M parameters and with ResNet-34, batch 255: arTuRO, SGD, Adam and "
        "AdamW; at CPU scale the CNN on CIFAR-10 for 0.4 epochs"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = (
        *(
            Case(
                f"{title}, CNN, 160 epochs",
                f"{data}-cnn@epochs=160,batch=255",
                CNN[data],
                source="not found",
            )
            for data, title in TITLES.items()
        ),
        *(
            Case(
                f"{title}, ResNet-34, 160 epochs",
                f"{data}-resnet34@epochs=160,batch=255,stem=imagenet",
                RESNET34[data],
                source="not found",
            )
            for data, title in TITLES.items()
        ),
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "CIFAR-10, CNN, batch 51, 0.4 epochs",
            "cifar10-cnn@epochs=0.4,batch=51,evaluations=3,validation=1000",
            CNN["cifar10"][:3],
            source="not found",
        ),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        NOT_FOUND,
        "Images are held out of training for validation, where the program trains on all 50,000; the last, incomplete "
        "batch of an epoch is dropped.",
        "On CIFAR-100 crops are padded with zeros, in the program by reflection.",
        "arTuRO keeps the bound in every step, where its program bisects and may miss it; the step is exact only with "
        "`newton_iters` of 4 or more, and these are runs of the default. A curvature below 0 is taken as 0.",
        "The program measures before each epoch, and so never after the last; here the model is measured at the end.",
        "CPU scale: 0.4 epochs of the CNN instead of 160, with the drops at the same shares of the run, and batches of "
        "51 instead of 255: 77 steps would be too few, of which arTuRO's own warm-up alone takes 28. The smaller batch "
        "is noisier than the settings were made for. AdamW is left out: in so few steps it is Adam.",
    )
    run_seconds: ClassVar[float] = 60.0
    gpu_time: ClassVar[str] = "not measured, and no figure found"
    cpu_time: ClassVar[str] = (
        "1 to 2 minutes an epoch of the CNN on one core: 3 to 6 hours a run; ResNet-34 is not for a CPU"
    )
