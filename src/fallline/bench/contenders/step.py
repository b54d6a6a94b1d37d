"""What the step benchmark must know of a method: in which forms to measure it, and what a step must move at the least.

A word is one number of a tensor, read or written. What a method must move at the least is what its passes read and
write when nothing between them is: temporaries live in registers. Our state is float32 also where parameters are
bfloat16, so words of weights (parameters and gradients) and of state are counted apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Words:
    """Words that a step must read and write for each parameter."""

    weights: float
    """Words of parameters and gradients, in the parameters' dtype."""

    state: float
    """Words of the optimizer's state, in the state's dtype."""

    @property
    def total(self) -> float:
        """Words of both kinds."""
        return self.weights + self.state

    def bytes(self, weight: float, state: float) -> float:
        """Bytes a parameter, from the bytes of a number of each kind."""
        return self.weights * weight + self.state * state


@dataclass(frozen=True)
class Step:
    """A method with some settings, measured fused and eager."""

    name: str
    """The name that `--only` takes, with `-fused` or `-eager` behind it."""

    label: str
    """The name in tables, without the mode."""

    words: Words | None
    """Words of a step at its least; None where something else than traffic bounds it."""

    state: float
    """Words of state a parameter, to know beforehand what fits into memory."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings besides the learning rate."""

    against: str | None = None
    """The method that the fused form is timed beside, by name."""

    target: float | None = None
    """The largest share of that method's time that the fused form may take: for float32 on the CPU."""

    per_word: bool = True
    """Whether the eager form is to cost no more a word than AdamW over lists does."""

    loss: bool = False
    """Whether `step` wants the loss."""

    fused: bool = True
    """Whether there is a fused form."""

    eager: bool = True
    """Whether the eager form is worth its time."""

    sets: tuple[str, ...] = ()
    """The only parameter sets that it is measured on; none: on all."""

    apart: bool = False
    """Measured only where `--only` names it: its first step takes minutes, or any step seconds."""
