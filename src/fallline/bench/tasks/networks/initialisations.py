"""Other initial weights, for KOALA's ablation (table 5 of the paper)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn import init

INITIALISATIONS: dict[str, Callable[..., Any]] = {
    "xavier-normal": init.xavier_normal_,
    "xavier-uniform": init.xavier_uniform_,
    "kaiming-normal": partial(init.kaiming_normal_, nonlinearity="relu"),
    "kaiming-uniform": partial(init.kaiming_uniform_, nonlinearity="relu"),
    "orthogonal": init.orthogonal_,
}
"""What fills a weight in place, by name. Kaiming's are those for ReLU, in a layer's inputs."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def initialise(model: nn.Module, scheme: str) -> nn.Module:
    """The model, its convolutions' and linear layers' weights drawn anew from torch's generator, all else as it was.

    A ValueError names the schemes there are.
    """
    if scheme not in INITIALISATIONS:
        raise ValueError(f"there is no initialisation {scheme!r}: choose from {', '.join(INITIALISATIONS)}")
    for module in model.modules():
        if isinstance(module, LAYERS):
            INITIALISATIONS[scheme](module.weight)
    return model
