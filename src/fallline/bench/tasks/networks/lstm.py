"""The recurrent language model of KOALA's experiments: PyTorch's word-language-model example."""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""Output and cell of every layer, each (layers, batch, width)."""


class LSTM(nn.Module):
    """Embedding, dropout, LSTM with dropout between its layers, dropout, linear: the next token's logits.

    The embedding starts uniform in (-0.1, 0.1), and with it the tied head; its bias at zero; the recurrent weights as
    torch draws them. KOALA's small model is `LSTM(vocabulary)`, its large one `LSTM(vocabulary, width=1500)`. On Penn
    Treebank (10,000 words) that is 2,653,200 and 51,034,000 parameters.

    Args:
        vocabulary: how many different tokens.
        width: of the embedding and of every layer.
        layers: how many.
        dropout: the share of activations dropped.
        tied: whether head and embedding are one matrix.
    """

    def __init__(
        self, vocabulary: int, width: int = 200, layers: int = 2, dropout: float = 0.65, tied: bool = True
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=between)
        self.head = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (batch, time, vocabulary) of tokens (batch, time), and the state to go on from.

        The state carries its graph: detach it before the next batch, or gradients run through all that came before.
        """
        features = self.dropout(self.embedding(tokens))
        with torch.autocast("cpu", enabled=False):  # its LSTM in bfloat16 fails on processors that lack the type
            features, state = self.lstm(features, state)
        return self.head(self.dropout(features)), state
