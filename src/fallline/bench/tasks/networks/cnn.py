"""The small convolutional networks of arTuRO's experiments."""

from torch import Tensor, nn
from torch.nn import functional as F


class CNN(nn.Module):
    """3x3 convolutions with ReLU, 2x2 max-pooling (perhaps), dropout 0.2; linear 256, ReLU, dropout 0.5; linear.

    Args:
        channels: of the images.
        widths: channels after each convolution.
        size: height and width of the images, in pixels.
        classes: how many.
        padding: zeros around each convolution's input, in pixels.
        pools: how many of the convolutions, from the first, are followed by pooling; None for all.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        size: int,
        classes: int,
        *,
        padding: int = 1,
        pools: int | None = None,
    ) -> None:
        super().__init__()
        pools = len(widths) if pools is None else pools
        blocks: list[nn.Module] = []
        for index, width in enumerate(widths):
            pooling = 2 if index < pools else 1
            blocks += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU()]
            blocks += [nn.MaxPool2d(2)] * (pooling == 2) + [nn.Dropout(0.2)]
            channels, size = width, (size + 2 * padding - 2) // pooling
        self.features = nn.Sequential(*blocks)
        self.hidden = nn.Linear(channels * size**2, 256)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, size, size)."""
        features = self.features(images).flatten(1)
        return self.classifier(self.dropout(F.relu(self.hidden(features))))  # type: ignore[no-any-return]


def fashion_cnn(classes: int = 10) -> CNN:
    """For 1x28x28 images: 32-64-128, no padding, pooling after the first two; 390,410 parameters (0.39 M)."""
    return CNN(1, (32, 64, 128), 28, classes, padding=0, pools=2)


def cifar_cnn(classes: int = 10) -> CNN:
    """For 3x32x32 images: 32-64-128-256; 653,386 parameters for 10 classes (0.65 M), 676,516 for 100 (0.68 M)."""
    return CNN(3, (32, 64, 128, 256), 32, classes)
