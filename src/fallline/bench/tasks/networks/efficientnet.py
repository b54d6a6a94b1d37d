"""EfficientNet-B0 (M. Tan and Q. Le, EfficientNet: rethinking model scaling for convolutional neural networks, 2019).

Initial weights, batch norm, dropout and stochastic depth are those of the authors' TPU program, which CoolMomentum
trains. Its strided convolutions pad the right and lower border more (TensorFlow's "SAME"), ours both sides alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table 1: equal blocks one after another, of which the first has the stride."""

    expansion: int
    """Channels within a block, as a multiple of those that enter it."""

    kernel: int
    """Size of the depthwise convolution, in pixels."""

    stride: int
    width: int
    """Channels that leave."""

    blocks: int


STEM, HEAD = 32, 1280
"""Channels before the first stage and after the last."""

STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)

DROPOUT = 0.2
"""Before the classifier; as a share of examples, what the last block would drop (the first drops none)."""


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))


class SqueezeExcitation(nn.Module):
    """Every channel times a number in (0, 1), found from the means of all."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.excite(self.activation(self.squeeze(means))).sigmoid()  # type: ignore[no-any-return]


class MBConv(nn.Module):
    """Expand 1x1, depthwise, squeeze and excitation, project 1x1; added to the input where the shapes are equal.

    In training each example skips the block with probability `drop` (stochastic depth), the others are scaled up.
    """

    def __init__(self, inputs: int, stage: Stage, stride: int, drop: float) -> None:
        super().__init__()
        hidden = stage.expansion * inputs
        layers: list[nn.Module] = [_conv(inputs, hidden), nn.SiLU()] if stage.expansion > 1 else []
        layers += [_conv(hidden, hidden, stage.kernel, stride, groups=hidden), nn.SiLU()]
        layers += [SqueezeExcitation(hidden, inputs // 4), _conv(hidden, stage.width)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == stage.width
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        y: Tensor = self.layers(x)
        if not self.residual:
            return y
        if self.training and self.drop:
            kept = torch.empty_like(y[:, :1, :1, :1]).bernoulli_(1 - self.drop)
            y = y * kept / (1 - self.drop)
        return x + y


class EfficientNet(nn.Module):
    """A 3x3 convolution of stride 2, the seven stages, a 1x1 convolution, mean, dropout, linear; SiLU throughout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, STEM, 3, stride=2), nn.SiLU())
        total, index, inputs = sum(stage.blocks for stage in STAGES), 0, STEM
        stages: list[nn.Module] = []
        for stage in STAGES:
            blocks: list[nn.Module] = []
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(MBConv(inputs, stage, stride, drop=DROPOUT * index / total))
                index, inputs = index + 1, stage.width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(_conv(inputs, HEAD), nn.SiLU())
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(HEAD, classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 3, height, width), 224x224 in the paper."""
        features = self.head(self.stages(self.stem(images)))
        return self.classifier(self.dropout(features.mean((2, 3))))  # type: ignore[no-any-return]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # a variance of 2 / (outputs that an input reaches)
                reached = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=(2 / reached) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        bound = self.classifier.out_features**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)


def efficientnet_b0(classes: int = 1000) -> EfficientNet:
    """5,288,548 parameters for 1,000 classes."""
    return EfficientNet(classes)
