"""The benchmark: everybody on one parameter set, in as many batches as memory asks for."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from speed.alone import temporaries
from speed.counts import Counts, count
from speed.fresh import Fresh, fresh
from speed.ground import DTYPES, Ground, Stepper, lay
from speed.methods import Method
from speed.results import ClockName, Part, Row, ratios, times
from speed.shapes import get_set
from speed.timing import COPY, Pair, Runner, Turn, turns

ROOM = 0.6
"""Of the memory so much is used."""

TEMPORARIES = 3
"""Words a parameter that a step may want beside its state."""


@dataclass(frozen=True)
class Plan:
    """What to measure on a parameter set, and how."""

    set: str
    """Its name."""

    dtype: str = "float32"
    """float32 or bfloat16, of parameters and gradients."""

    device: str = "cpu"
    """cpu or cuda."""

    threads: int = 1
    """Of torch."""

    rounds: int = 7
    """In each, everybody has a turn."""

    steps: int | None = None
    """In a turn; None: as many as take about 0.05 seconds."""

    seed: int = 0
    """Of the order, and of the parameters."""

    first: bool = True
    """Whether to take the seconds of first steps, each in two new processes."""

    memory: bool = True
    """Whether to take the memory of temporaries: on the CPU in such a process, on a GPU its allocator tells."""

    @property
    def clock(self) -> ClockName:
        """By which ratios are judged: where one thread does all, CPU time, which other processes hardly change."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"


@dataclass(frozen=True)
class Seen:
    """What is known of a method besides its turns."""

    state: float
    """Words a parameter."""

    state_bytes: float
    """Of such a word."""

    counts: Counts | None
    """Of a step."""

    temporaries: int | None = None
    """Bytes, where this process can tell."""


def measure(
    plan: Plan, methods: Sequence[Method], files: Sequence[Path] = (), say: Callable[[str], object] = lambda _: None
) -> Part:
    """Measure methods on a set; those that they are timed beside must be among them.

    Args:
        plan: what and how.
        methods: whom.
        files: which define some of them: new processes read them too.
        say: is told what is being done.

    Raises:
        ValueError: there is no such set, or nobody can take a step.
    """
    shapes = get_set(plan.set)
    here = f"{plan.set}, {plan.dtype}"
    heard: list[Turn] = []
    seen: dict[str, Seen] = {}
    left_out: dict[str, str] = {}
    with threads(plan.threads):
        ground = lay(shapes, DTYPES[plan.dtype], plan.device, plan.seed)
        weight = ground.dtype.itemsize
        largest = max(p.numel() for p in ground.params) * weight
        tensors, elements = len(ground.params), ground.elements
        every = batches(methods, elements, weight, memory(plan.device))
        for i, batch in enumerate(every, 1):
            where = here if len(every) == 1 else f"{here}, batch {i} of {len(every)}"
            release()
            heard += hold(plan, ground, batch, seen, left_out, partial(told, say, where))
        del ground
    release()
    if not seen:
        raise ValueError(f"nobody could take a step: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")

    apart: dict[str, Fresh] = {}
    task = {"set": plan.set, "dtype": plan.dtype, "device": plan.device, "threads": plan.threads}
    for method in methods:
        if method.name in seen and (plan.first or (plan.memory and plan.device == "cpu")):
            say(f"{here}: {method.title} in a new process")
            apart[method.name] = fresh(method, task, files, first=plan.first)

    copy = times([turn for turn in heard if turn.method == COPY])
    copied = 2 * elements * weight / copy[plan.clock].median
    by_name = {method.name: method for method in methods if method.name in seen}
    moved = {name: least(method, seen[name], elements, weight) for name, method in by_name.items()}
    rows = [row(plan, method, heard, seen[name], moved, copied, apart.get(name)) for name, method in by_name.items()]
    facts = (plan.set, plan.dtype, plan.device, plan.threads, tensors, elements, largest)
    return Part(*facts, plan.clock, plan.rounds, plan.seed, tuple(rows), copy, copied, tuple(heard), left_out)


def told(say: Callable[[str], object], where: str, what: str) -> None:
    """Say what is being done where."""
    say(f"{where}: {what}")


def hold(
    plan: Plan,
    ground: Ground,
    batch: Sequence[Method],
    seen: dict[str, Seen],
    left_out: dict[str, str],
    say: Callable[[str], object],
) -> list[Turn]:
    """Warm up the methods of a batch, look at a step of each, and hold the rounds.

    Args:
        plan: what and how.
        ground: what they share.
        batch: who; those that others are timed beside may have been in a batch before.
        seen: takes what is known of each.
        left_out: takes who cannot take a step, and why.
        say: is told what is being done.
    """
    new = [method for method in batch if method.name not in seen]
    runners: dict[str, Runner] = {}
    for method in batch:
        say(f"{method.title} warms up")
        try:
            stepper = Stepper(method, ground)
            stepper.step()  # may compile
            runner = Runner(stepper.step, ground.device, plan.threads, plan.steps)
            if method in new:
                words = sum(value.numel() for value in stepper.state()) / ground.elements
                peak = temporaries(stepper, ground) if plan.memory and plan.device == "cuda" else None
                seen[method.name] = Seen(words, stepper.state_bytes(), count(stepper.step, ground.device), peak)
        except Exception as error:  # whatever an optimizer may raise: the others are measured all the same
            left_out[method.name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        runners[method.name] = runner
    if not runners:
        return []
    source = torch.full((ground.elements,), 0.5, dtype=ground.dtype, device=ground.device)
    target = torch.zeros_like(source)
    runners[COPY] = Runner(lambda: target.copy_(source), ground.device, plan.threads, plan.steps)
    pairs: list[Pair] = [(COPY, None)]
    pairs += [(one.name, one.against if one.against in runners else None) for one in new if one.name in runners]
    return list(turns(runners, pairs, plan.rounds, plan.seed, lambda i: say(f"round {i + 1} of {plan.rounds}")))


def row(
    plan: Plan,
    method: Method,
    heard: Sequence[Turn],
    seen: Seen,
    moved: Mapping[str, float | None],
    copied: float,
    told_apart: Fresh | None,
) -> Row:
    """All that is known of a method.

    Args:
        plan: what and how.
        method: whom.
        heard: all turns.
        seen: what was seen of a step.
        moved: bytes that a step of each must move.
        copied: bandwidth of a copy, in bytes a second.
        told_apart: what new processes told.
    """
    mine = [turn for turn in heard if turn.method == method.name]
    taken = times(mine)
    own, other = moved[method.name], moved.get(method.against or "")
    bandwidth = own / taken[plan.clock].median if own else None
    judged = plan.device == "cpu" and plan.dtype == "float32"
    return Row(
        method=method,
        turns=len(mine),
        times=taken,
        ratios=ratios(method, heard),
        clock=plan.clock,
        floor=own / other if own and other else None,
        bytes=own,
        bandwidth=bandwidth,
        share=bandwidth / copied if bandwidth else None,
        state=seen.state,
        counts=seen.counts,
        fresh=told_apart,
        temporaries=told_apart.temporaries if told_apart and plan.device == "cpu" else seen.temporaries,
        target=method.target if judged else None,
    )


def least(method: Method, seen: Seen, elements: int, weight: int) -> float | None:
    """Bytes that a step must move over so many parameters of `weight` bytes; None where nobody counted."""
    return elements * method.words.bytes(weight, seen.state_bytes) if method.words else None


def batches(methods: Sequence[Method], elements: int, weight: int, room: float) -> list[tuple[Method, ...]]:
    """Groups of methods that fit into memory at once, each with those that its members are timed beside.

    Args:
        methods: all of them, in order.
        elements: parameters, in numbers.
        weight: bytes of one.
        room: bytes that may be used in all.
    """
    by_name = {method.name: method for method in methods}

    def together(batch: Sequence[Method]) -> list[Method]:
        names: set[str] = set()
        todo = [one.name for one in batch]
        while todo:
            names.add(name := todo.pop())
            beside = by_name[name].against
            todo += [beside] if beside in by_name else []
        return [one for name, one in by_name.items() if name in names]

    def size(batch: Sequence[Method]) -> float:
        shared = 4 * weight  # parameters, gradients, two buffers to copy
        return elements * (shared + 4 * TEMPORARIES + sum(4 * one.state for one in together(batch)))

    found: list[list[Method]] = []
    for method in methods:
        if any(method in together(batch) for batch in found):
            continue
        if found and size([*found[-1], method]) <= room:
            found[-1].append(method)
        else:
            found.append([method])
    return [tuple(together(batch)) for batch in found]


def memory(device: str) -> float:
    """Bytes that may be used: a part of the machine's, or of what is free on a GPU."""
    if device == "cuda":
        return ROOM * torch.cuda.mem_get_info()[0]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's; else "max"
    told = limit.read_text(encoding="ascii").strip() if limit.exists() else ""
    return ROOM * min(total, int(told) if told.isdecimal() else total)


def release() -> None:
    """Free what nobody holds any more: others need it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
