"""The transformer: GPT-2's decoder, small.

A. Radford et al., Language models are unsupervised multitask learners, 2019.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STANDARD_DEVIATION = 0.02
"""Of all initial weights, but of those that write to the residual stream: these are smaller, the more layers do so."""


class Attention(nn.Module):
    """Causal self-attention: every position looks at itself and those before it, in several heads."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of features (batch, time, width), the same shape."""
        # (batch, time, 3 * width) to queries, keys and values, each (batch, heads, time, width / heads)
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then two linear layers with GELU between; each is normalised before and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Of features (batch, time, width), the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A pre-norm decoder with learned positions; the head is the embedding, transposed.

    With 65 characters and a context of 64 it has 809,856 parameters.

    Args:
        vocabulary: how many different tokens.
        context: the most tokens it can look at.
        layers: how many.
        heads: of each layer's attention; they divide the width.
        width: of the residual stream.
        dropout: the share of activations dropped.
        hidden: width between a layer's two linear layers; None for four times the width.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        *,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden or 4 * width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self._initialise(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, time, vocabulary) of tokens (batch, time), time at most the context."""
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"{time} tokens are more than the context of {self.context}")
        x = self.tokens(tokens) + self.positions(torch.arange(time, device=tokens.device))
        return self.head(self.norm(self.blocks(self.dropout(x))))  # type: ignore[no-any-return]

    def _initialise(self, layers: int) -> None:
        for name, parameter in self.named_parameters():  # which names the shared matrix once
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                to_residual = name.endswith(("out.weight", "down.weight"))
                scale = 1 / math.sqrt(2 * layers) if to_residual else 1.0
                nn.init.normal_(parameter, std=STANDARD_DEVIATION * scale)


def transformer(vocabulary: int, context: int = 35) -> GPT:
    """KOALA's transformer: 2 layers, 2 heads, width 200 throughout, dropout 0.65, tied; 2,491,400
    parameters for Penn Treebank's 10,000 words at a context of 35.

    Sizes are those of PyTorch's word-language-model example. That one normalises after each addition, has ReLU, fixed
    sine positions and initial weights uniform in (-0.1, 0.1): here it is GPT-2's decoder in these sizes.
    """
    return GPT(vocabulary, context, layers=2, heads=2, width=200, dropout=0.65, hidden=200)
