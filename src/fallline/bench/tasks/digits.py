"""Digits: 1,797 real images of handwritten digits, 8x8 pixels, which scikit-learn ships; no download.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split, Task

TRAINING, BATCH, EPOCHS = 1077, 64, 30
SPLIT_SEED = 0
"""One split for all runs: the intervals of a report tell of initialisation and data order, not of the split."""

Images = tuple[Tensor, Tensor]
"""Pixels in [0, 1], shape (images, 64), and labels, shape (images,)."""


class Digits(Task):
    """A multilayer perceptron 64-64-64-10 with ReLU, cross-entropy, batches of 64, 30 epochs."""

    name = "digits"
    summary = (
        "1,797 real 8×8 images of handwritten digits (60/20/20 % train/validation/test, stratified), "
        "MLP 64-64-64-10, batch 64, 30 epochs"
    )
    reference = (0.13, "AdamW with 150 trials has 0.12: docs/race.md")
    examples = TRAINING
    batch_size = BATCH
    steps = EPOCHS * (TRAINING // BATCH)

    def model(self) -> nn.Module:
        """The perceptron, torch's own initialisation."""
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def batches(self, order: torch.Generator) -> Iterator[Images]:
        """Epoch after epoch in a new order; the last, incomplete batch of an epoch is dropped."""
        images, labels = self._splits["train"]
        while True:
            for batch in torch.randperm(len(labels), generator=order).split(self.batch_size):
                if len(batch) == self.batch_size:
                    yield images[batch], labels[batch]

    def losses(self, model: nn.Module, batch: Images) -> Tensor:
        """Cross-entropy of every image, in nats."""
        images, labels = batch
        return F.cross_entropy(model(images), labels, reduction="none")

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross-entropy in nats, and the share of images classified rightly."""
        device = next(model.parameters()).device
        images, labels = (tensor.to(device) for tensor in self._splits[split])
        logits = model(images)
        return {
            "loss": F.cross_entropy(logits, labels).item(),
            "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        }

    def data(self) -> Iterable[Tensor]:
        """All images and labels."""
        return (tensor for split in self._splits.values() for tensor in split)

    @cached_property
    def _splits(self) -> dict[str, Images]:
        from sklearn.datasets import load_digits  # here: listing the tasks does without
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        rest, test, rest_labels, test_labels = train_test_split(
            images, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED
        )
        train, validation, train_labels, validation_labels = train_test_split(
            rest, rest_labels, test_size=0.25, stratify=rest_labels, random_state=SPLIT_SEED
        )

        def tensors(x: object, y: object) -> Images:
            return torch.as_tensor(x, dtype=torch.float32) / 16, torch.as_tensor(y)

        return {
            "train": tensors(train, train_labels),
            "validation": tensors(validation, validation_labels),
            "test": tensors(test, test_labels),
        }
