"""Text whose next word or character is to be foretold: Penn Treebank, WikiText-2, tiny Shakespeare."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks._task import Split, Task
from fallline.bench.tasks.data import find, load_text
from fallline.bench.tasks.networks.gpt import GPT, transformer
from fallline.bench.tasks.networks.lstm import LSTM

TEXTS = {
    "shakespeare": ("tiny-shakespeare", "tiny Shakespeare", 65, 1_003_854),
    "ptb": ("penn-treebank", "Penn Treebank", 10_000, 929_589),
    "wikitext2": ("wikitext-2", "WikiText-2", 33_278, 2_088_628),
}
"""The set's name in `fallline.bench.tasks.data`, its title, its vocabulary, and the tokens of its training split."""


@dataclass(frozen=True)
class Architecture:
    """A network as the tasks use it."""

    title: str
    batch: int
    context: int
    """Tokens that a gradient reaches back."""

    epochs: float
    make: Callable[[int, int], nn.Module]
    """From vocabulary and context."""

    evaluations: int = 20
    """How often a run is measured."""

    streams: int = 10
    """Into which the held-out text is cut, to be read side by side."""

    validation: int | None = None
    """Tokens of the validation text that are measured on, in equal parts of each stream; None for all."""


ARCHITECTURES = {
    "lstm": Architecture("LSTM 2×200", 20, 35, 40, lambda words, _: LSTM(words, 200)),
    "lstm-large": Architecture("LSTM 2×1500", 20, 35, 40, lambda words, _: LSTM(words, 1500)),
    "transformer": Architecture("transformer of 2 layers and 2 heads", 20, 35, 40, transformer),
    "gpt": Architecture("GPT of 4 layers, width 128", 12, 64, 1, lambda words, context: GPT(words, context)),
    "gpt-small": Architecture(
        "GPT of 2 layers, width 64",
        16,
        32,
        0.1,
        lambda words, context: GPT(words, context, layers=2, heads=2, width=64),
        evaluations=5,
        streams=100,
        validation=6400,
    ),
}


class Carried(nn.Module):
    """A recurrent network that goes on, in each row of a batch, from where the last batch ended."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.state: tuple[Tensor, ...] | None = None
        """Each of shape (layers, rows, width)."""

    def forward(self, tokens: Tensor, fresh: Tensor) -> Tensor:
        """Logits, shape (rows, context, vocabulary); a row that is `fresh`, shape (rows,), starts from zeros."""
        state = self.state
        if state is not None and state[0].shape[1] == len(tokens):
            keep = (1 - fresh).to(state[0])[:, None]
            state = tuple(part * keep for part in state)
        else:
            state = None
        logits, state = self.network(tokens, state)
        self.state = tuple(part.detach() for part in state)
        return logits  # type: ignore[no-any-return]

    def get_extra_state(self) -> tuple[Tensor, ...] | None:
        """The state is part of a checkpoint."""
        return self.state

    def set_extra_state(self, state: tuple[Tensor, ...] | None) -> None:
        """From a checkpoint."""
        self.state = state


class Stateless(nn.Module):
    """A network that sees its context alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, fresh: Tensor) -> Tensor:
        """Logits, shape (rows, context, vocabulary)."""
        logits: Tensor = self.network(tokens)
        return logits


class Language(Task):
    """Cross-entropy of the next token; `TEXT-MODEL` of `TEXTS` and `ARCHITECTURES`.

    Text is cut into as many streams as a batch has rows, and read from the start to the end in each epoch, `context`
    tokens at a time, from an offset that is drawn anew for each epoch.
    """

    def __init__(self, name: str) -> None:
        """A task by its name, as `ptb-lstm`."""
        text, _, model = name.partition("-")
        self.name, self.architecture = name, ARCHITECTURES[model]
        self.corpus, title, self.vocabulary, self.tokens = TEXTS[text]
        self.needs = (self.corpus,)
        self.batch_size, self.context = self.architecture.batch, self.architecture.context
        self.evaluations = self.architecture.evaluations
        self.examples = self.tokens // self.context
        self.steps = round(self.architecture.epochs * self.epoch)
        self.summary = (
            f"{title}, {self.tokens:,} tokens, {self.architecture.title}, {self.batch_size} streams of "
            f"{self.context} tokens a step, {self.architecture.epochs:g} epoch{'s'[: self.architecture.epochs != 1]}"
        )
        self._streams: dict[tuple[torch.device, str], Tensor] = {}

    @property
    def epoch(self) -> int:
        """Batches in an epoch: what a stream holds from the largest offset on."""
        assert self.batch_size is not None
        return (self.tokens // self.batch_size - self.context) // self.context

    def model(self) -> nn.Module:
        """The network, around it what carries its state from batch to batch."""
        network = self.architecture.make(self.vocabulary, self.context)
        return Carried(network) if isinstance(network, LSTM) else Stateless(network)

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        """Shape (batch, 3): the stream, the place where to start in it, and whether an epoch begins."""
        assert self.batch_size is not None
        rows = torch.arange(self.batch_size)
        while True:
            offset = int(torch.randint(self.context, (), generator=order))
            for number in range(self.epoch):
                start = torch.full_like(rows, offset + number * self.context)
                yield torch.stack([rows, start, torch.full_like(rows, number == 0)], dim=1)

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy of every token, in nats, shape (batch · context,)."""
        rows, start, fresh = batch.unbind(1)
        places = start[:, None] + torch.arange(self.context + 1, device=batch.device)
        tokens = self._streamed("train", batch.device)[rows[:, None], places]
        logits = model(tokens[:, :-1], fresh)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross-entropy in nats, and its exponential, the perplexity."""
        streams = self._streamed(split, next(model.parameters()).device)
        carriers = [module for module in model.modules() if isinstance(module, Carried)]
        states = [carrier.state for carrier in carriers]
        total, count = 0.0, 0
        for start in range(0, streams.shape[1] - 1, self.context):
            tokens = streams[:, start : start + self.context + 1]
            fresh = torch.full((len(streams),), int(start == 0), device=streams.device)
            logits = model(tokens[:, :-1], fresh).flatten(0, 1).float()
            total += F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").item()
            count += tokens[:, 1:].numel()
        for carrier, state in zip(carriers, states, strict=True):
            carrier.state = state
        mean = torch.tensor(total / count, dtype=torch.float64)
        return {"loss": mean.item(), "perplexity": mean.exp().item()}

    def data(self) -> Iterable[Any]:
        """The files as they are."""
        return find(self.corpus)

    def _streamed(self, split: str, device: torch.device) -> Tensor:
        """A split cut into streams of equal length, shape (streams, tokens of one); the rest is dropped."""
        assert self.batch_size is not None
        count = self.batch_size if split == "train" else self.architecture.streams
        key = (device, f"{split} {count}")
        if key not in self._streams:
            corpus = load_text(self.corpus)
            if (len(corpus.train), len(corpus.vocabulary)) != (self.tokens, self.vocabulary):
                raise ValueError(
                    f"{self.name} is about {self.tokens:,} tokens of {self.vocabulary:,} kinds, and {self.corpus} has "
                    f"{len(corpus.train):,} of {len(corpus.vocabulary):,}"
                )
            tokens: Tensor = getattr(corpus, split)
            length = len(tokens) // count
            streams = tokens[: count * length].view(count, length)
            if split == "validation" and self.architecture.validation is not None:
                streams = streams[:, : self.architecture.validation // count + 1]
            self._streams[key] = streams.to(device)
        return self._streams[key]
