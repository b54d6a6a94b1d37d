"""Images that are to be put into classes: MNIST, Fashion-MNIST, CIFAR-10 and -100, ImageNet at 32x32 pixels.

All pixels lie on the device as bytes. A batch is a table of numbers, a row an image; pixels are gathered, cropped and
flipped where the model is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split, Task
from fallline.bench.tasks.data import find, load_images
from fallline.bench.tasks.networks.autoencoder import autoencoder
from fallline.bench.tasks.networks.bn_cnn import bn_cnn
from fallline.bench.tasks.networks.cnn import cifar_cnn, fashion_cnn
from fallline.bench.tasks.networks.initialisations import initialise
from fallline.bench.tasks.networks.mlp import mlp
from fallline.bench.tasks.networks.resnet import resnet8, resnet18, resnet20, resnet34, resnet50, wide_resnet50_2
from fallline.bench.tasks.networks.row_lstm import RowLSTM

SPLIT_SEED = 0
"""One split for all runs: the intervals of a report tell of initialisation and data order, not of the split."""

PAD = 4
"""Pixels that a crop may be off to any side."""

EVALUATED = 500
"""Images of one forward pass in an evaluation."""


@dataclass(frozen=True)
class Source:
    """A set of images as the tasks use it."""

    data: str
    """Its name in `fallline.bench.tasks.data`."""

    title: str
    training: int
    """Images of the publisher's training set, of which some are held out."""

    shape: tuple[int, int, int]
    """Channels, height, width."""

    classes: int
    augmented: bool
    """Random crops and flips in training, and pixels to mean 0 and variance 1; without, they stay in [0, 1]."""


SOURCES = {
    "mnist": Source("mnist", "MNIST", 60_000, (1, 28, 28), 10, augmented=False),
    "fmnist": Source("fashion-mnist", "Fashion-MNIST", 60_000, (1, 28, 28), 10, augmented=False),
    "cifar10": Source("cifar-10", "CIFAR-10", 50_000, (3, 32, 32), 10, augmented=True),
    "cifar100": Source("cifar-100", "CIFAR-100", 50_000, (3, 32, 32), 100, augmented=True),
    "imagenet32": Source("imagenet32", "ImageNet at 32×32", 1_281_167, (3, 32, 32), 1000, augmented=True),
}


@dataclass(frozen=True)
class Architecture:
    """A network as the tasks use it."""

    title: str
    batch: int
    epochs: float
    """Horizon unless another is asked for."""

    make: Callable[..., nn.Module]
    """From a source and, for those with a choice of stems, `stem`; ResNet-8 and -20 take `width`."""

    validation: int = 5000
    """Images held out unless another number is asked for: fewer where a run takes seconds, as measuring would otherwise
    take longer than training."""

    evaluations: int = 20
    """How often a run is measured."""


def _mlp(source: Source) -> nn.Module:
    channels, height, width = source.shape
    return mlp(channels * height * width, 128, 128, source.classes)


def _softmax(source: Source) -> nn.Module:
    channels, height, width = source.shape
    return mlp(channels * height * width, source.classes)


def _autoencoder(source: Source) -> nn.Module:
    channels, height, width = source.shape
    return autoencoder(channels * height * width, 32, 16, 8)


def _row_lstm(source: Source) -> nn.Module:
    channels, _, width = source.shape
    return RowLSTM(channels * width, 32, source.classes)


def _cnn(source: Source) -> nn.Module:
    return (fashion_cnn if source.shape[0] == 1 else cifar_cnn)(source.classes)


def _bn_cnn(source: Source) -> nn.Module:
    return bn_cnn(source.shape[0], source.classes)


def _small(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda source, width=16: make(source.classes, channels=source.shape[0], width=width)


def _large(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda source, stem="cifar": make(source.classes, channels=source.shape[0], stem=stem)


ARCHITECTURES = {
    "softmax": Architecture("softmax regression", 128, 2, _softmax, validation=2000, evaluations=10),
    "mlp": Architecture("MLP 128-128 with ReLU", 128, 10, _mlp),
    "autoencoder": Architecture(
        "autoencoder 32-16-8-16-32 (loss in nats per pixel)", 128, 0.75, _autoencoder, validation=2000, evaluations=10
    ),
    "lstm": Architecture("LSTM of width 32 on the rows", 64, 0.35, _row_lstm, validation=2000, evaluations=10),
    "cnn": Architecture("arTuRO’s CNN", 255, 10, _cnn),
    "cnn-bn": Architecture("CNN 16-32-64 with batch norm", 32, 0.14, _bn_cnn, validation=2000, evaluations=5),
    "resnet8": Architecture("ResNet-8", 128, 10, _small(resnet8)),
    "resnet20": Architecture("ResNet-20", 128, 30, _small(resnet20)),
    "resnet18": Architecture("ResNet-18", 128, 100, _large(resnet18)),
    "resnet34": Architecture("ResNet-34", 128, 100, _large(resnet34)),
    "resnet50": Architecture("ResNet-50", 128, 100, _large(resnet50)),
    "wrn50-2": Architecture("Wide ResNet-50-2", 128, 100, _large(wide_resnet50_2)),
}


class Images(Task):
    """Cross-entropy on a set of images; `DATA-MODEL` of `SOURCES` and `ARCHITECTURES`."""

    def __init__(
        self,
        name: str,
        *,
        validation: int | None = None,
        init: str | None = None,
        stem: str | None = None,
        width: int | None = None,
    ) -> None:
        """A task by its name.

        Args:
            name: as `cifar10-resnet8`.
            validation: images held out of the training set; by default the architecture's number.
            init: the scheme of `fallline.bench.tasks.networks.initialisations`; by default the model's own.
            stem: `cifar` or `imagenet`, of ResNet-18 and larger.
            width: channels of the first stage of ResNet-8 and -20.
        """
        data, _, model = name.partition("-")
        self.name, self.source, self.architecture = name, SOURCES[data], ARCHITECTURES[model]
        self.needs = (self.source.data,)
        validation = self.architecture.validation if validation is None else validation
        self.validation, self.init, self.evaluations = validation, init, self.architecture.evaluations
        self.options = {key: value for key, value in {"stem": stem, "width": width}.items() if value is not None}
        self.examples = self.source.training - validation
        if not 0 < validation < self.source.training:
            raise ValueError(f"{name} has {self.source.training:,} images in all; validation={validation} of them?")
        self.batch_size = self.architecture.batch
        self.steps = round(self.architecture.epochs * (self.examples // self.batch_size))
        self.summary = (
            f"{self.source.title}, {self.examples:,} images to train on and {validation:,} held out of them, "
            f"{self.architecture.title}, batch {self.batch_size}, {self.architecture.epochs:g} epochs"
        )
        self._pixels: dict[torch.device, dict[str, tuple[Tensor, Tensor]]] = {}
        if init or self.options:  # a wrong one is refused at once
            with torch.device("meta"):
                self.model()

    def model(self) -> nn.Module:
        """The network, as its paper or `init` initialises it."""
        try:
            model = self.architecture.make(self.source, **self.options)
        except TypeError:
            raise ValueError(f"{self.name} takes no option {' or '.join(self.options)}") from None
        if self.init:
            initialise(model, self.init)
        return model

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        """Epoch after epoch in a new order, the last, incomplete batch dropped.

        A row for each image, shape (batch, 4): its number, the rows and the columns by which its crop is off, each
        0 ... 2 PAD with PAD for none, and whether it is flipped.
        """
        assert self.examples is not None
        while True:
            numbers = torch.randperm(self.examples, generator=order)
            if self.source.augmented:
                crops = torch.randint(2 * PAD + 1, (len(numbers), 2), generator=order)
                flips = torch.randint(2, (len(numbers), 1), generator=order)
            else:
                crops, flips = torch.full((len(numbers), 2), PAD), torch.zeros(len(numbers), 1, dtype=torch.long)
            for batch in torch.cat([numbers[:, None], crops, flips], dim=1).split(self.batch_size):
                if len(batch) == self.batch_size:
                    yield batch

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy of every image, in nats."""
        pixels, labels = self._on(batch.device)["train"]
        numbers, down, right, flip = batch.unbind(1)
        images = pixels[numbers]
        if self.source.augmented:
            images = moved(images, down, right, flip)
        return F.cross_entropy(model(self._normalised(images, model)).float(), labels[numbers], reduction="none")

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross-entropy in nats, and the share of images classified rightly."""
        pixels, labels = self._on(next(model.parameters()).device)[split]
        loss = torch.zeros((), dtype=torch.float64, device=labels.device if labels.device.type != "mps" else "cpu")
        right = torch.zeros((), dtype=torch.long, device=labels.device)
        for images, truth in zip(pixels.split(EVALUATED), labels.split(EVALUATED), strict=True):
            logits = model(self._normalised(images, model)).float()
            loss += F.cross_entropy(logits, truth, reduction="sum").to(loss)
            right += (logits.argmax(1) == truth).sum()
        return {"loss": loss.item() / len(labels), "accuracy": right.item() / len(labels)}

    def data(self) -> Iterable[Any]:
        """The files as they are, and how they are split."""
        return [*find(self.source.data), self.validation]

    def _normalised(self, images: Tensor, model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return normalised(images, dtype, *self._moments) if self.source.augmented else images.to(dtype) / 255

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of x/255, per channel."""
        known = load_images(self.source.data)
        return known.mean, known.std

    def _on(self, device: torch.device) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Pixels and labels of every split, on a device."""
        if device not in self._pixels:
            known = load_images(self.source.data)
            images, labels = known.train
            mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
            held, kept = mixed[: self.validation], mixed[self.validation :]
            splits = {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held])}
            splits["test"] = known.test
            self._pixels[device] = {name: (x.to(device), y.to(device)) for name, (x, y) in splits.items()}
        return self._pixels[device]


def normalised(pixels: Tensor, dtype: torch.dtype, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Bytes, shape (n, channels, height, width), as numbers of mean 0 and variance 1; `mean` and `std` are of x/255."""
    centre, spread = (_per_channel(values, pixels.device, dtype) for values in (mean, std))
    return (pixels.to(dtype) / 255 - centre) / spread


@cache
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: to bring it to an accelerator with every batch would make that wait."""
    return torch.tensor(values).to(device, dtype).view(-1, 1, 1)


def moved(images: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Each image as a crop of itself with a black border of PAD, then perhaps flipped.

    Args:
        images: shape (n, channels, height, width).
        down: the crop's first row, 0 ... 2 PAD, shape (n,).
        right: its first column.
        flip: 1 for those to mirror, left to right.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (PAD,) * 4).permute(0, 2, 3, 1)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None].bool(), width - 1 - columns, columns) + right[:, None]
    rows = torch.arange(height, device=images.device) + down[:, None]
    every = torch.arange(n, device=images.device)[:, None, None]
    return padded[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
