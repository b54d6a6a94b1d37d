"""The methods whose steps are measured: torch's own, and those whose cards have steps."""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fallline.bench.common.names import unknown
from fallline.bench.contenders import Contender, Words, contenders

Mode = Literal["eager", "fused", "foreach", "plain", "captured"]
"""How a step runs: our kernels one tensor at a time, or in one pass over all; torch's over lists; as the authors write
it; or the fused step as a CUDA graph."""

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Method:
    """An optimizer in one of its forms."""

    name: str
    """What `--only` takes."""

    label: str
    """For tables, without the mode."""

    make: Make
    """From parameters to an optimizer. Learning rates are so small that weights stay finite for any number of steps."""

    mode: Mode
    words: Words | None
    """Of a step at its least; None where something else than traffic bounds it."""

    state: float
    """Words of state a parameter, to know beforehand what fits into memory."""

    against: str | None = None
    """The method that it is timed beside, by name."""

    target: float | None = None
    """The largest share of that method's time that it may take: for float32 on the CPU."""

    loss: bool = False
    """Whether `step` wants the loss."""

    sets: tuple[str, ...] = ()
    """The only parameter sets that it is measured on; none: on all."""

    apart: bool = False
    """Measured only where `--only` names it: its first step takes minutes, or any step seconds."""

    @property
    def title(self) -> str:
        """The label, with the mode."""
        return f"{self.label}, {self.mode}"


SGD, ADAMW = Words(weights=3, state=2), Words(weights=3, state=4)
"""Parameter read and written, gradient read; each tensor of state read and written."""

RATE = 1e-9
"""Nobody moves a weight by more than its last digits."""


def _torch() -> Iterable[Method]:
    """torch's own, the yardsticks."""
    for mode in ("fused", "foreach"):
        run: dict[str, Any] = {mode: True}
        sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9, **run)
        yield Method(f"sgd-{mode}", "SGD", sgd, mode, SGD, 1)
        yield Method(f"adamw-{mode}", "AdamW", partial(torch.optim.AdamW, lr=RATE, **run), mode, ADAMW, 2)


def of_card(card: Contender) -> Iterator[Method]:
    """A method as its card says, fused and eager."""
    for one in card.steps:
        more: dict[str, Any] = dict(words=one.words, state=one.state, loss=one.loss, sets=one.sets, apart=one.apart)
        fixed = {"lr": RATE, **one.settings}
        if one.fused:
            fused = partial(made, card, {**fixed, "fused": True})
            beside: dict[str, Any] = dict(against=one.against, target=one.target)
            yield Method(f"{one.name}-fused", one.label, fused, "fused", **beside, **more)
        if one.eager:
            yardstick: dict[str, Any] = {}
            if one.words is not None:
                share = one.words.total / ADAMW.total if one.per_word else None
                yardstick = dict(against="adamw-foreach", target=share)
            yield Method(f"{one.name}-eager", one.label, partial(made, card, fixed), "eager", **yardstick, **more)


def made(card: Contender, settings: Mapping[str, Any], parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a card."""
    optimizer: Any = card.make(cast(Iterable[nn.Parameter], parameters), settings, None)
    return cast(torch.optim.Optimizer, optimizer)


def in_order(cards: Mapping[str, Contender]) -> list[Contender]:
    """The cards in the order of the tables; those from elsewhere come last."""
    first = [cards[name] for name in ORDER]
    return first + [card for name, card in cards.items() if name not in ORDER]


ORDER = ("coolmomentum", "koala-v", "koala-m", "koala-pp", "koala-adam", "koala-orthogonal", "arturo", "lodo")
"""From the simplest to the most expensive."""

METHODS: tuple[Method, ...] = (*_torch(), *(method for card in in_order(contenders()) for method in of_card(card)))
"""What is measured unless `--only` says otherwise, in the order of the tables."""


def read_methods(path: Path) -> tuple[Method, ...]:
    """The list `METHODS` of a Python file.

    Raises:
        ValueError: the file cannot be imported, or has no such list; the message says which.
    """
    spec = importlib.util.spec_from_file_location(f"methods_of_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for themselves
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file may raise
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, "METHODS", None)
    if not isinstance(found, Sequence) or not found or not all(isinstance(one, Method) for one in found):
        raise ValueError(f"{path} has no list METHODS of speed.Method")
    return tuple(found)


def all_methods(files: Iterable[Path] = ()) -> dict[str, Method]:
    """Ours, torch's and those of the files, by name.

    Raises:
        ValueError: a file is none, two methods have one name, or one is timed beside nobody that there is.
    """
    methods: dict[str, Method] = {}
    for one in (*METHODS, *(one for path in files for one in read_methods(path))):
        if one.name in methods:
            raise ValueError(f"there are two methods of the name {one.name!r}")
        methods[one.name] = one
    for one in methods.values():
        if one.against is not None and (one.against not in methods or one.against == one.name):
            raise ValueError(f"{one.name!r} is timed beside {one.against!r}, which is none of the others")
    return methods


def chosen(methods: dict[str, Method], only: Sequence[str], set_name: str) -> tuple[Method, ...]:
    """Those to measure on a set, with those that they are timed beside, in the order of `methods`.

    Args:
        methods: by name.
        only: names, what names begin with (`koala-v`), or modes (`fused`); none: all that do not stand apart.
        set_name: the parameter set.

    Raises:
        ValueError: a word fits nobody, or nobody is left on this set.
    """

    def fits(one: Method, word: str) -> bool:
        return one.name == word or one.name.startswith(f"{word}-") or one.mode == word

    for word in only:
        if not any(fits(one, word) for one in methods.values()):
            raise unknown("method", word, methods)
    # One that stands apart is named by its own name, not by a mode.
    picked = [
        one
        for one in methods.values()
        if (any(fits(one, w) and not (one.apart and one.mode == w) for w in only) if only else not one.apart)
        and (not one.sets or set_name in one.sets)
    ]
    if not picked:
        raise ValueError(f"there is nothing to measure on {set_name}: {', '.join(only)} is measured elsewhere")
    wanted = {one.name for one in picked}
    for name in (todo := sorted(wanted)):
        beside = methods[name].against
        if beside is not None and beside not in wanted:
            wanted.add(beside)
            todo.append(beside)
    return tuple(one for one in methods.values() if one.name in wanted)
