"""The parameter sets: the shapes of two networks, computed from their architecture, and two extremes."""

from collections.abc import Callable, Iterator, Mapping
from math import prod

from fallline.bench.common.names import unknown

Shape = tuple[int, ...]


def resnet18(classes: int = 10) -> Iterator[Shape]:
    """ResNet-18 for images of 32 x 32: no pooling after the first convolution, which is 3 x 3."""

    def convolution(inputs: int, outputs: int, size: int) -> Iterator[Shape]:
        """Without bias, and the normalization behind it: scale and shift."""
        yield (outputs, inputs, size, size)
        yield from ((outputs,), (outputs,))

    yield from convolution(3, 64, 3)
    inputs = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            yield from convolution(inputs, width, 3)
            yield from convolution(width, width, 3)
            if inputs != width:  # the short cut must change its width too
                yield from convolution(inputs, width, 1)
            inputs = width
    yield (classes, inputs)
    yield (classes,)


def gpt2(width: int = 768, blocks: int = 12, vocabulary: int = 50_257, context: int = 1_024) -> Iterator[Shape]:
    """GPT-2 small; its head is the embedding, and so does not come again."""

    def linear(inputs: int, outputs: int) -> Iterator[Shape]:
        yield (outputs, inputs)
        yield (outputs,)

    def norm() -> Iterator[Shape]:
        yield from ((width,), (width,))

    yield (vocabulary, width)
    yield (context, width)
    for _ in range(blocks):
        yield from norm()
        yield from linear(width, 3 * width)  # queries, keys, values
        yield from linear(width, width)
        yield from norm()
        yield from linear(width, 4 * width)
        yield from linear(4 * width, width)
    yield from norm()


def tiny() -> Iterator[Shape]:
    """For tests: 1 to 4 dimensions, a tensor of one number."""
    yield from ((8, 3, 3, 3), (8,), (4, 2, 5), (10, 8), (10,), (1,))


SETS: Mapping[str, Callable[[], Iterator[Shape]]] = {
    "resnet18": resnet18,
    "gpt2": gpt2,
    "many": lambda: iter([(10_000,)] * 1_000),
    "one": lambda: iter([(50_000_000,)]),
}
"""By the name that `--set` takes."""

HIDDEN: Mapping[str, Callable[[], Iterator[Shape]]] = {"tiny": tiny}
"""Known as well, but told to nobody."""


def get_set(name: str) -> tuple[Shape, ...]:
    """The shapes of a set; `ValueError` if there is none of this name."""
    if name not in {**SETS, **HIDDEN}:
        raise unknown("parameter set", name, SETS)
    return tuple({**SETS, **HIDDEN}[name]())


def elements(shapes: tuple[Shape, ...]) -> int:
    """How many numbers they hold in all."""
    return sum(map(prod, shapes))
