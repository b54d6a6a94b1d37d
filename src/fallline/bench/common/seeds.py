"""Named random streams from one seed.

A run has one seed. What it draws, it draws from streams with names, so that two optimizers with the same run seed start
from the same weights and see the same batches, however many numbers either of them consumes.
"""

import hashlib

import torch


def derive(*parts: str | int) -> int:
    """A seed in [0, 2**63), the range SQLite's integers and torch's generators share, hashed from the parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(run_seed: int, stream: str) -> torch.Generator:
    """A generator of its own for one stream of a run: `order`, ..."""
    return torch.Generator().manual_seed(derive(run_seed, stream))


def seed_torch(run_seed: int, stream: str) -> None:
    """Seed torch's global generator, for what cannot be handed another: layers' initialisation, dropout."""
    torch.manual_seed(derive(run_seed, stream))
