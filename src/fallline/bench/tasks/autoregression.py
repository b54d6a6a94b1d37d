"""One pixel of a digit from those before it: the task of LODO's paper (Liao et al., 2023) on MNIST."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split, Task
from fallline.bench.tasks.data import find, load_images
from fallline.bench.tasks.networks.autoregressor import Autoregressor

HELD_OUT, BATCH, STEPS = 2000, 256, 300_000
"""Images to measure on, of the training set for validation and of the test set; images of a batch; steps."""

SPLIT_SEED = 0
AT_ONCE = 200
"""Images of one forward pass in an evaluation."""


class Autoregression(Task):
    """The value of a pixel, one of 256, from the pixels before it, row by row; a random pixel of each image."""

    def __init__(self, name: str, *, size: int = 28) -> None:
        """At 28x28 pixels, or pooled to 14x14."""
        if size not in (14, 28):
            raise ValueError(f"{name}: size is 28 or 14, got {size}")
        self.name, self.size = name, size
        self.needs = ("mnist",)
        self.examples, self.batch_size, self.steps = 60_000 - HELD_OUT, BATCH, STEPS
        self.summary = (
            f"MNIST at {size}×{size} pixels, the value of a random pixel of each image from those before it, LODO’s "
            f"network of 94,696 parameters, batch {BATCH}, {STEPS:,} steps"
        )
        self._splits: dict[torch.device, dict[str, tuple[Tensor, Tensor]]] = {}

    def model(self) -> nn.Module:
        """LODO's network."""
        return Autoregressor()

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        """Epoch after epoch in a new order; shape (batch, 2): the image's number, the pixel's."""
        assert self.examples is not None
        while True:
            numbers = torch.randperm(self.examples, generator=order)
            pixels = torch.randint(self.size**2, (len(numbers),), generator=order)
            for batch in torch.stack([numbers, pixels], dim=1).split(self.batch_size):
                if len(batch) == self.batch_size:
                    yield batch

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy of every image's pixel, in nats."""
        numbers, pixel = batch.unbind(1)
        return self._nats(model, self._on(batch.device)["train"][0][numbers], pixel)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross-entropy in nats: one pixel of every image, the same each time."""
        images, pixels = self._on(next(model.parameters()).device)[split]
        parts = zip(images.split(AT_ONCE), pixels.split(AT_ONCE), strict=True)
        return {"loss": torch.cat([self._nats(model, some, which) for some, which in parts]).double().mean().item()}

    def data(self) -> Iterable[Any]:
        """The files as they are."""
        return find("mnist")

    @staticmethod
    def _nats(model: nn.Module, images: Tensor, pixel: Tensor) -> Tensor:
        truth = images.flatten(1).gather(1, pixel[:, None]).squeeze(1).long()
        return F.cross_entropy(model(images, pixel).float(), truth, reduction="none")

    def _on(self, device: torch.device) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Images and, of each, the pixel that is asked for in evaluations, on a device."""
        if device not in self._splits:
            fixed = torch.Generator().manual_seed(SPLIT_SEED)
            known = load_images("mnist")
            train, test = (images if self.size == 28 else halved(images) for images, _ in (known.train, known.test))
            mixed = torch.randperm(len(train), generator=fixed)
            splits = {"train": train[mixed[HELD_OUT:]], "validation": train[mixed[:HELD_OUT]], "test": test[:HELD_OUT]}
            self._splits[device] = {
                name: (images.to(device), torch.randint(self.size**2, (len(images),), generator=fixed).to(device))
                for name, images in splits.items()
            }
        return self._splits[device]


def halved(images: Tensor) -> Tensor:
    """Means of 2x2 pixels, rounded: uint8 (n, 1, 28, 28) to (n, 1, 14, 14)."""
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)
