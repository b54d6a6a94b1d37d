"""The multilayer perceptron."""

from itertools import pairwise

from torch import nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers through `sizes`, inputs first and classes last, with ReLU between, torch's own initialisation.

    Images (n, channels, height, width) are flattened to (n, sizes[0]); the logits are (n, sizes[-1]).
    """
    if len(sizes) < 2:
        raise ValueError("a perceptron needs two sizes at least: of its inputs and of its outputs")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # the logits have no ReLU
