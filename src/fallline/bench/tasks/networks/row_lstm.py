"""A recurrent network that reads an image row by row.

Q. V. Le, N. Jaitly and G. E. Hinton, A simple way to initialize recurrent networks of rectified linear units, 2015,
read MNIST pixel by pixel; a row at a time is the same problem in 28 steps instead of 784.
"""

import torch
from torch import Tensor, nn


class RowLSTM(nn.Module):
    """One LSTM from the top row to the bottom one, and a linear head on its last output; torch's own initialisation.

    With width 32 it has 8,266 parameters for 1x28x28 images and 10 classes.

    Args:
        inputs: pixels in a row, all channels together.
        width: of the LSTM.
        classes: how many.
    """

    def __init__(self, inputs: int, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, channels, height, width)."""
        rows = images.transpose(1, 2).flatten(2)
        with torch.autocast("cpu", enabled=False):  # its LSTM in bfloat16 fails on processors that lack the type
            outputs, _ = self.lstm(rows)
        return self.head(outputs[:, -1])  # type: ignore[no-any-return]
