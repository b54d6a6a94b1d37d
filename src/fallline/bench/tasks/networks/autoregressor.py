"""LODO's network for MNIST, pixel by pixel (I. Liao et al., Learning to optimize quasi-Newton methods, TMLR 2023).

As in the authors' program: planes, layers, initialisation. They ran it in float64; here the model's own type decides.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 256
"""Grey values, the classes to tell apart."""

RESIDUAL, HIDDEN, MULTIPLIER = 20, 40, 3
"""Channels between the blocks, within them, and how many filters the depthwise convolution has for each of these."""


def planes(images: Tensor, pixel: Tensor) -> Tensor:
    """What the network sees, (n, 5, h, w), of images (n, 1, h, w) in 0..255 and the raster positions (n,) to predict.

    A position is visible if it comes before `pixel` row by row. The planes: grey value / 256 where visible, else 0; 1
    in the columns up to the pixel's own, else -1; 1 where visible, else -1; row and column of every position, from -1.
    The second and third together say where the pixel is. In memory the planes lie side by side (`channels_last`), which
    a CPU convolves faster.
    """
    height, width = images.shape[-2:]
    position = torch.arange(height * width, device=images.device).view(height, width)
    row, column = position // width, position % width
    target = pixel[:, None, None]
    visible = (position < target).to(images.dtype)
    left = (column <= target % width).to(images.dtype)
    rows, columns = (2 * row / height - 1).expand_as(visible), (2 * column / width - 1).expand_as(visible)
    grey = images[:, 0] * visible / LEVELS
    return torch.stack([grey, 2 * left - 1, 2 * visible - 1, rows, columns], dim=-1).permute(0, 3, 1, 2)


class Depthwise(nn.Module):
    """A 3x3 convolution with three filters for each of 40 channels: (n, 40, h, w) to (n, 120, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(MULTIPLIER * HIDDEN, 1, 3, 3))
        self.bias = nn.Parameter(torch.empty(MULTIPLIER * HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """First every channel by its first filter, then every channel by its second, then by its third.

        Three convolutions, as with a single one the whole network takes 1.5 times as long or more on a CPU.
        """
        parts = zip(self.weight.split(HIDDEN), self.bias.split(HIDDEN), strict=True)
        return torch.cat([F.conv2d(x, weight, bias, padding=1, groups=HIDDEN) for weight, bias in parts], dim=1)


class Block(nn.Module):
    """1x1 convolution, atan, depthwise 3x3 convolution, atan, 1x1 convolution, added to the input; 4,460 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(RESIDUAL, HIDDEN, 1)
        self.depthwise = Depthwise()
        self.narrow = nn.Conv2d(MULTIPLIER * HIDDEN, RESIDUAL, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 20, h, w) to the same."""
        return x + self.narrow(self.depthwise(self.widen(x).atan()).atan())  # type: ignore[no-any-return]


class Autoregressor(nn.Module):
    """A pixel's grey value from those before it: 94,696 parameters, for images of up to 32x32.

    1x1 convolution 5 to 20; five times four residual blocks and 2x2 average pooling, which rounds sizes up and counts
    no padding (28-14-7-4-2-1); linear 20 to 256. Weights and biases start normal, of variance 1 / (1 + inputs).
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, RESIDUAL, 1)
        self.stages = nn.ModuleList(nn.Sequential(*(Block() for _ in range(4))) for _ in range(5))
        self.last = nn.Linear(RESIDUAL, LEVELS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | Depthwise):
                deviation = (1 + module.weight[0].numel()) ** -0.5  # the bias counts as one input more
                nn.init.normal_(module.weight, std=deviation)
                nn.init.normal_(module.bias, std=deviation)  # type: ignore[arg-type]  # all have biases

    def forward(self, images: Tensor, pixel: Tensor) -> Tensor:
        """Logits (n, 256) for the pixels at the raster positions `pixel` (n,) of images (n, 1, h, w) in 0..255."""
        x = self.first(planes(images.to(self.first.weight.dtype), pixel))
        for stage in self.stages:
            x = F.avg_pool2d(stage(x), 2, ceil_mode=True, count_include_pad=False)
        return self.last(x[..., 0, 0])  # type: ignore[no-any-return]
