"""What the methods of a run share: one set of parameters with fixed gradients. Each has only its state of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.seeds import derive
from speed.methods import Method
from speed.shapes import Shape, elements

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By the name that `--dtype` takes."""

WEIGHTS, GRADIENTS = 0.02, 1e-3
"""Standard deviations: as in a network. Zeros would hide what cannot be compressed, and tiny numbers are slow."""


@dataclass(frozen=True)
class Ground:
    """Parameters with gradients, and the loss that they belong to."""

    params: list[nn.Parameter]
    """With `grad`, which no step changes."""

    loss: Tensor
    """0-D, float32."""

    @property
    def elements(self) -> int:
        """Numbers in all parameters."""
        return sum(p.numel() for p in self.params)

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and gradients."""
        return self.params[0].dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.params[0].device


def lay(shapes: tuple[Shape, ...], dtype: torch.dtype, device: str, seed: int = 0) -> Ground:
    """Parameters of these shapes, with random values and gradients."""
    numbers = torch.Generator(device).manual_seed(derive(seed, "ground"))

    def normal(shape: Shape, scale: float) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=dtype, device=device).mul_(scale)

    params = [nn.Parameter(normal(shape, WEIGHTS)) for shape in shapes]
    for p in params:
        p.grad = normal(tuple(p.shape), GRADIENTS)
    assert sum(p.numel() for p in params) == elements(shapes)
    return Ground(params, torch.tensor(1.0, device=device))


class Stepper:
    """A method on a ground: its optimizer, and its step as a function of nothing."""

    def __init__(self, method: Method, ground: Ground) -> None:
        self.optimizer: Any = method.make(ground.params)
        """Any of torch's kind; loss-aware ones take more than `step` of torch.optim does."""

        self.loss = {"loss": ground.loss} if method.loss else {}

    def step(self) -> None:
        """Take a step."""
        self.optimizer.step(**self.loss)

    def state(self) -> list[Tensor]:
        """All floating tensors of the optimizer's state."""
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]

    def state_bytes(self) -> float:
        """Bytes of a number of the state; 4 where there is none."""
        held = [value for value in self.state() if value.numel() > 1]
        numbers = sum(value.numel() for value in held)
        return sum(value.numel() * value.element_size() for value in held) / numbers if numbers else 4.0
