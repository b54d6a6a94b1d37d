"""ImageNet as a folder of images, with the EfficientNet-B0 of CoolMomentum's paper (Borysenko and Byshkin, 2021)."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split, Task
from fallline.bench.tasks.data import Files, MissingData, centre_crop, decode, image_folder, random_resized_crop
from fallline.bench.tasks.images import normalised
from fallline.bench.tasks.networks.efficientnet import efficientnet_b0

IMAGES, CLASSES = 1_281_167, 1000
"""Of the publisher's training set; a folder with others is taken as it is, once it is there."""

SPLIT_SEED = 0
AHEAD = 2
"""Batches that are decoded before they are asked for."""

EVALUATED = 100
SMOOTHING = 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, Tensor]
"""Pixels, uint8 of shape (batch, 3, size, size), and labels."""


class ImageNet(Task):
    """Cross-entropy with label smoothing 0.1, random crops of 8 to 100 % of an image, and flips."""

    def __init__(self, name: str, *, size: int = 224, validation: int = 10_000, data: str = "imagenet") -> None:
        """A task by its name.

        Args:
            name: `imagenet-efficientnet-b0`.
            size: height and width of a crop, in pixels.
            validation: images held out of the training set; at most a tenth of it.
            data: the set's name in `fallline.bench.tasks.data`.
        """
        self.name, self.size, self.folder = name, size, data
        self.needs = (data,)
        try:
            files = image_folder(data, "train")
            count, self.classes = len(files.paths), len(files.classes)
        except MissingData:  # what is missing is told when it is read
            count, self.classes = IMAGES, CLASSES
        self.validation = min(validation, count // 10)
        self.examples, self.batch_size = count - self.validation, min(256, count - self.validation)
        self.steps = 350 * (self.examples // self.batch_size)
        self.evaluations = min(70, self.steps)
        self.summary = (
            f"ImageNet, {self.examples:,} images in {self.classes:,} classes, crops of {size}×{size}, EfficientNet-B0, "
            f"batch {self.batch_size}, 350 epochs"
        )

    def model(self) -> nn.Module:
        """EfficientNet-B0."""
        return efficientnet_b0(self.classes)

    def batches(self, order: torch.Generator) -> Iterator[Batch]:
        """Epoch after epoch in a new order, the last, incomplete batch dropped; decoded by threads, ahead of time."""
        return self.shares(order, 0, 1)

    def shares(self, order: torch.Generator, rank: int, ranks: int) -> Iterator[Batch]:
        """Of every batch the share of one process, which alone is decoded."""
        assert self.batch_size is not None
        if self.batch_size % ranks:
            raise ValueError(f"a batch of {self.batch_size} examples cannot be cut into {ranks} equal shares")
        mine = slice(rank * self.batch_size // ranks, (rank + 1) * self.batch_size // ranks)
        coming: deque[tuple[list[Future[Tensor]], Tensor]] = deque()
        for numbers, seeds in self._plans(order):
            drawn = zip(numbers[mine].tolist(), seeds[mine].tolist(), strict=True)
            crops = [self._readers.submit(self._cropped, number, seed) for number, seed in drawn]
            coming.append((crops, self._files["train"].labels[numbers[mine]]))
            if len(coming) > AHEAD:
                crops, labels = coming.popleft()
                yield torch.stack([crop.result() for crop in crops]), labels

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of every image with smoothed labels, in nats."""
        images, labels = batch
        logits = model(self._normalised(images, model)).float()
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=SMOOTHING)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross-entropy in nats, without smoothing, and the share of images classified rightly."""
        files, device = self._files[split], next(model.parameters()).device
        loss, right = 0.0, 0
        for numbers in torch.arange(len(files.paths)).split(EVALUATED):
            images = torch.stack(list(self._readers.map(self._centred, [files.paths[number] for number in numbers])))
            truth = files.labels[numbers].to(device)
            logits = model(self._normalised(images.to(device), model)).float()
            loss += F.cross_entropy(logits, truth, reduction="sum").item()
            right += int((logits.argmax(1) == truth).sum())
        return {"loss": loss / len(files.paths), "accuracy": right / len(files.paths)}

    def data(self) -> Iterable[Any]:
        """The names of the files and their sizes: to read 140 GB for a checksum would take longer than many a run."""
        paths = [Path(path) for split in ("train", "test") for path in self._files[split].paths]
        return [(path.name, path.stat().st_size) for path in paths]

    def _plans(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch the images' numbers, and a seed for the crop of each."""
        assert self.examples is not None
        assert self.batch_size is not None
        while True:
            numbers = torch.randperm(self.examples, generator=order)
            seeds = torch.randint(2**62, (len(numbers),), generator=order)
            whole = len(numbers) - len(numbers) % self.batch_size
            yield from zip(numbers[:whole].split(self.batch_size), seeds[:whole].split(self.batch_size), strict=True)

    def _cropped(self, number: int, seed: int) -> Tensor:
        path = self._files["train"].paths[number]
        return random_resized_crop(decode(path), self.size, torch.Generator().manual_seed(seed))

    def _centred(self, path: str) -> Tensor:
        return centre_crop(decode(path), self.size)

    def _normalised(self, images: Tensor, model: nn.Module) -> Tensor:
        return normalised(images, next(model.parameters()).dtype, MEAN, STD)

    @cached_property
    def _files(self) -> dict[str, Files]:
        """Paths and labels of every split; the publisher's validation set is the test set here."""
        train, test = image_folder(self.folder, "train"), image_folder(self.folder, "val")
        mixed = torch.randperm(len(train.paths), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        held, kept = mixed[: self.validation], mixed[self.validation :]
        return {"train": _some(train, kept), "validation": _some(train, held), "test": test}

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(32, os.cpu_count() or 1))


def _some(files: Files, numbers: list[int]) -> Files:
    return replace(files, paths=tuple(files.paths[number] for number in numbers), labels=files.labels[numbers])
