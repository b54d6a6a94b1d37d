"""The small network of the claims and of the gallery: digits, as `fallline race digits` has it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.tasks.digits import Digits


class Perceptron:
    """A network and its batches, both of one seed; in float64, as exact claims need it, unless asked otherwise."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.task, self.dtype = Digits(), dtype
        seed_torch(seed, "init")
        self.model = self.task.model().to(dtype)
        self.batches = self.task.batches(generator(seed, "order"))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of all layers."""
        return list(self.model.parameters())

    @property
    def point(self) -> Tensor:
        """All weights in one vector, a copy."""
        return torch.cat([p.detach().flatten() for p in self.weights])

    def losses(self, factor: float = 1.0) -> Tensor:
        """The losses of the next batch, [64], in nats, and with the gradients of their mean, both times a factor."""
        images, labels = next(self.batches)
        losses = F.cross_entropy(self.model(images.to(self.dtype)), labels, reduction="none")
        self.model.zero_grad()
        losses.mean().backward()
        for p in self.weights:
            if factor != 1.0 and p.grad is not None:
                p.grad.mul_(factor)
        return factor * losses.detach()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the validation set that is classified rightly."""
        single = self.task.model()
        single.load_state_dict(self.model.state_dict())
        return self.task.evaluate(single, "validation")["accuracy"]
