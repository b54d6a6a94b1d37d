"""A small convolutional network with batch norm: one run of it takes seconds on a CPU."""

from torch import nn


def bn_cnn(channels: int = 3, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with batch norm and ReLU; mean over the pixels; linear.

    Torch's own initialisation; convolutions have no biases, as batch norm would take them out again. 24,378 parameters
    for 3x32x32 images and 10 classes; images (n, channels, height, width) to logits (n, classes).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
