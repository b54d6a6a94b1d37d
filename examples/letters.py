"""A task of my own. Try it with: fallline race letters.py --optimizers sgd,adamw,koala-m,koala-orthogonal"""

from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

from fallline.bench.tasks import Task

BEFORE = 8


class Letters(Task):
    """Python's manual, the next letter from the eight before it: MLP of width 64, batch 64, 120 steps"""

    steps = 120

    def __init__(self):
        text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
        letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
        ids = torch.tensor([letters[letter] for letter in text])
        parts = ids.split([160_000, 20_000, 20_000])
        self.letters = len(letters)
        self.parts = dict(zip(("train", "validation", "test"), parts, strict=True))

    def model(self):
        embedding = nn.Embedding(self.letters, 16)
        head = nn.Linear(64, self.letters)
        return nn.Sequential(embedding, nn.Flatten(), nn.Linear(16 * BEFORE, 64), nn.Tanh(), head)

    def batches(self, order):
        while True:
            yield self.pieces("train", torch.randint(150_000, (64, 1), generator=order))

    def losses(self, model, batch):
        before, following = batch
        return F.cross_entropy(model(before), following, reduction="none")

    def evaluate(self, model, split):
        return {"loss": self.losses(model, self.pieces(split, torch.arange(0, 19_000, 10)[:, None])).mean().item()}

    def data(self):
        return self.parts.values()

    def pieces(self, split, starts):
        """Eight letters and the next, from each of ``starts``, [n, 1]."""
        window = self.parts[split][starts + torch.arange(BEFORE + 1)]
        return window[:, :-1], window[:, -1]
