"""Residual networks (K. He et al., Deep residual learning for image recognition, CVPR 2016), in two families.

`resnet8` and `resnet20` are small, for 32x32 images, in the form of Keras's example "ResNet v1", which CoolMomentum
trains. It leaves the paper in three points: where the width doubles the shortcut is a 1x1 convolution without
batch norm (the paper pads with zeros), convolutions have biases, initial weights are truncated normal. Thus ResNet-20
has 273,066 parameters to train, as Keras counts them; the paper's form has 272,474 with batch norms, "0.27 M".

`resnet18`, `resnet34`, `resnet50` and `wide_resnet50_2` (S. Zagoruyko and N. Komodakis, Wide residual networks, 2016)
are torchvision's: a bottleneck's stride lies in its 3x3 convolution.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Stem = Literal["cifar", "imagenet"]
"""`cifar`: a 3x3 convolution of stride 1, for images of 32x32. `imagenet`: 7x7, stride 2, and max-pooling, stride 2."""

STEMS: tuple[Stem, ...] = ("cifar", "imagenet")

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal variable that is cut off at two standard deviations."""


class SmallBlock(nn.Module):
    """Two 3x3 convolutions of Keras's form, and the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, padding=1), _keras_norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), _keras_norm(width)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _small_resnet(blocks: int, classes: int, channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), _keras_norm(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(SmallBlock(inputs, width << stage, stride=2 if stage and not block else 1))
            inputs = width << stage
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # Keras's "he_normal"
            deviation = (2 / module.weight[0].numel()) ** 0.5 / TRUNCATED
            nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all have biases
    return model


def _keras_norm(width: int) -> nn.BatchNorm2d:
    # Keras's epsilon, but not its momentum: averages over 100 batches would lag behind in our short runs.
    return nn.BatchNorm2d(width, eps=1e-3)


def resnet8(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Sequential:
    """One block a stage, widths 16-32-64; 78,186 parameters for 3x32x32 images and 10 classes."""
    return _small_resnet(1, classes, channels, width)


def resnet20(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Sequential:
    """Three blocks a stage, widths 16-32-64; 273,066 parameters for 3x32x32 images and 10 classes."""
    return _small_resnet(3, classes, channels, width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: of ResNet-18 and -34."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, narrow in the middle: of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int, narrow: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, narrow, 1), nn.BatchNorm2d(narrow)
        self.conv2, self.norm2 = _conv(narrow, narrow, 3, stride), nn.BatchNorm2d(narrow)
        self.conv3, self.norm3 = _conv(narrow, width, 1), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, four stages whose first blocks (but that of the first stage) halve height and width, mean, linear.

    Convolutions start Kaiming normal in their outputs, batch norms at 1 and 0, the linear layer as torch has it.

    Args:
        blocks: in each of the four stages.
        bottleneck: width of the first stage's bottlenecks; None for basic blocks.
        classes: how many.
        channels: of the images.
        stem: "cifar" or "imagenet".
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        bottleneck: int | None,
        classes: int,
        channels: int,
        stem: Stem,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"there is no stem {stem!r}: choose from {', '.join(STEMS)}")
        first = _conv(channels, 64, 3) if stem == "cifar" else _conv(channels, 64, 7, stride=2)
        pool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(), pool)
        stages: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate(blocks):
            width = (64 if bottleneck is None else 256) << stage
            layers: list[nn.Module] = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                if bottleneck is None:
                    layers.append(BasicBlock(inputs, width, stride))
                else:
                    layers.append(Bottleneck(inputs, width, stride, bottleneck << stage))
                inputs = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, height, width)."""
        return self.classifier(self.stages(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


def resnet18(classes: int = 10, channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """Basic blocks 2-2-2-2; 11,173,962 parameters with the CIFAR stem and 10 classes, 11,689,512 for ImageNet."""
    return ResNet((2, 2, 2, 2), None, classes, channels, stem)


def resnet34(classes: int = 10, channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """Basic blocks 3-4-6-3; 21,282,122 parameters with the CIFAR stem and 10 classes, 21,797,672 for ImageNet."""
    return ResNet((3, 4, 6, 3), None, classes, channels, stem)


def resnet50(classes: int = 10, channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """Bottlenecks 3-4-6-3; 23,520,842 parameters with the CIFAR stem and 10 classes, 25,557,032 for ImageNet."""
    return ResNet((3, 4, 6, 3), 64, classes, channels, stem)


def wide_resnet50_2(classes: int = 10, channels: int = 3, stem: Stem = "cifar") -> ResNet:
    """ResNet-50 with bottlenecks twice as wide; 66,847,050 parameters with the CIFAR stem and 10 classes, 68,883,240
    for ImageNet.
    """
    return ResNet((3, 4, 6, 3), 128, classes, channels, stem)
