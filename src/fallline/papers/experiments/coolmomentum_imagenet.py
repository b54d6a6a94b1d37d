"""CoolMomentum on ImageNet: EfficientNet-B0, 350 epochs (Borysenko and Byshkin 2021). Never run here."""

from typing import ClassVar

from fallline.papers.experiments._experiment import Case, Entry, Experiment
from fallline.papers.experiments.coolmomentum_cifar import PAPER


class CoolMomentumImageNet(Experiment):
    """CoolMomentum against RMSprop."""

    name: ClassVar[str] = "coolmomentum-imagenet"
    summary: ClassVar[str] = (
        "ImageNet with EfficientNet-B0, batch 2048, 350 epochs: CoolMomentum and RMSprop; there is no CPU scale, and "
        "it was never run here"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = (
        Case(
            "ImageNet, EfficientNet-B0, 350 epochs",
            "imagenet-efficientnet-b0@epochs=350,batch=2048",
            (
                Entry(
                    "CoolMomentum",
                    "coolmomentum@constant",
                    {"lr": 0.6, "rho_0": 0.99, "schedule": "exponential", "weight_decay": 1e-5},
                    source="Borysenko and Byshkin 2021: cools over the whole run",
                ),
                Entry(
                    "RMSprop",
                    "rmsprop@cosine",
                    {"lr": 0.128, "alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-5},
                    source="Tan and Le 2019, EfficientNet, and its TPU program: lr 0.016 for each 256 examples",
                ),
            ),
            published={"CoolMomentum": 77.0, "RMSprop": 77.2},
            source="Borysenko and Byshkin 2021, read off a figure to 0.1: top-1 accuracy; top-5: 93.2 and 93.5",
        ),
    )
    cpu: ClassVar[tuple[Case, ...]] = ()
    deviations: ClassVar[tuple[str, ...]] = (
        "There is no CPU scale: a step of batch 2048 alone takes minutes, and EfficientNet-B0 on small images is "
        "another task.",
        "Full scale: measured are the weights themselves, in the paper their moving average (decay 0.9999).",
        "Full scale: the paper's program runs 5 epochs without momentum before the cooling; here it cools from the "
        "start. It applies the learning rate outside of the momentum, here it is inside.",
        "Full scale: RMSprop's rate follows a cosine after a warm-up over 5 % of the run, in the program it falls by "
        "3 % every 2.4 epochs after a warm-up of 5 epochs; torch adds epsilon outside of the root.",
        "Full scale: weight decay acts on all parameters, in the program not on batch norm's.",
        "Full scale: images are held out of training for validation; the publisher's validation set is the test set.",
    )
    gpu_time: ClassVar[str] = (
        "23.3 hours on 8 GPUs of type RTX 3080 for EfficientNet-B0 (MosaicML's Composer); not measured here"
    )
    cpu_time: ClassVar[str] = "years"
