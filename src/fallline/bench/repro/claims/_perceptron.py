"""The small network of the claims, in float64: digits, as `fallline race digits` has it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.seeds import generator, seed_torch
from fallline.bench.tasks.digits import Digits


class Perceptron:
    """A network and its batches, both of one seed."""

    def __init__(self, seed: int) -> None:
        self.task = Digits()
        seed_torch(seed, "init")
        self.model = self.task.model().double()
        self.batches = self.task.batches(generator(seed, "order"))

    @property
    def weights(self) -> list[nn.Parameter]:
        """Of all layers."""
        return list(self.model.parameters())

    def losses(self) -> Tensor:
        """Of the next batch, [64], in nats; the backward pass of their mean is done."""
        images, labels = next(self.batches)
        losses = F.cross_entropy(self.model(images.double()), labels, reduction="none")
        self.model.zero_grad()
        losses.mean().backward()
        return losses.detach()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the validation set that is classified rightly."""
        single = self.task.model()
        single.load_state_dict(self.model.state_dict())
        return self.task.evaluate(single, "validation")["accuracy"]
