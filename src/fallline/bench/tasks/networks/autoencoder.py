"""The deep, narrow autoencoder: a classical hard problem for optimizers.

G. Hinton and R. Salakhutdinov, Reducing the dimensionality of data with neural networks, Science, 2006; J. Martens,
Deep learning via Hessian-free optimization, ICML 2010.
"""

from itertools import pairwise

from torch import nn


def autoencoder(*sizes: int) -> nn.Sequential:
    """Linear layers down through `sizes`, pixels first and the code last, and up again, torch's own initialisation.

    ReLU after every layer but that of the code, which is linear, and the last. Images (n, channels, height, width) are
    flattened to (n, sizes[0]); so are the logits of the pixels.
    """
    if len(sizes) < 2:
        raise ValueError("an autoencoder needs two sizes at least: of its inputs and of its code")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise([*sizes, *sizes[-2::-1]]):
        layers += [nn.Linear(inputs, outputs), nn.Identity() if outputs == sizes[-1] else nn.ReLU()]
    return nn.Sequential(*layers[:-1])
