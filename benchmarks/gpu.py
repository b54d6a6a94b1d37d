"""What only a GPU can tell: whether the fused kernels are right there, and what a step costs.

    PYTHONPATH=src python benchmarks/gpu.py        # or: make gpu

Less than eight minutes; what does not fit into them is left out by name. Needs torch 2.11 or newer with its Triton,
numpy, scipy, rich and typer, and nothing installed. Writes benchmarks/records/gpu-DEVICE.json, from which chart.py
makes its table; ends with 1 where there is no GPU or a check failed.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import fallline
from speed import METHODS, Method
from speed.command import show, wide
from speed.counts import count
from speed.fresh import fresh
from speed.methods import RATE
from speed.record import machine, write
from speed.results import Part
from speed.run import Plan, measure

RECORDS = Path(__file__).parent / "records"
CHECKS_END, PARTS_END, FIRST_END = 120.0, 330.0, 420.0
"""Seconds after the start, past which no check, no part of the benchmark and no first step begins."""

PATIENCE = 120.0
"""Seconds until the checks of a method in a dtype are given up."""

# --- checks ---

CHECKED: dict[str, Callable[..., fallline.Optimizer]] = {
    "lodo": partial(fallline.LODO, lr=0.1, meta_lr=0.01, depth=2),  # first: it compiles for long
    "coolmomentum": partial(fallline.CoolMomentum, lr=0.05, rho_0=0.9, cool_steps=20),
    "coolmomentum-decay": partial(fallline.CoolMomentum, lr=0.05, rho_0=0.9, cool_steps=20, weight_decay=0.1),
    "koala-v": partial(fallline.VanillaKOALA, lr=0.5, sigma=0.1),
    "koala-v-decay": partial(fallline.VanillaKOALA, lr=0.5, sigma=0.1, weight_decay=0.1),
    "koala-m": partial(fallline.MomentumKOALA, lr=0.5),
    "koala-m-decay": partial(fallline.MomentumKOALA, lr=0.5, weight_decay=0.1, q_rule="paper"),
    "koala-m-fixed": partial(fallline.MomentumKOALA, lr=0.5, q_rule="fixed"),
    "koala-pp": partial(fallline.KOALAPlusPlus, lr=0.5, sigma=0.1, q=0.1),
    "koala-pp-decay": partial(fallline.KOALAPlusPlus, lr=0.5, sigma=0.1, q=0.1, weight_decay=0.1),
    "arturo": partial(fallline.ArTuRO, lr=50.0),  # far enough for bfloat16 to see it
    "arturo-newton": partial(fallline.ArTuRO, lr=50.0, newton_iters=4, weight_decay=1e-3),
}
BOUNDS = {"float32": 1e-4, "float64": 1e-12, "bfloat16": 1e-2}
"""What two runs may differ by, absolutely and relatively: by dtype, as tests/test_contract.py has it."""

SHAPES = ((300, 70), (70,), (), (5, 3, 2, 2), (2048,), (4099,))
"""Many blocks, one, a number; ends that fill a block and ends that do not."""

EVERY = tuple(range(len(SHAPES)))
GONE = ((), (1,), (1,), (), EVERY[1:], (), EVERY, ())
"""Step by step, the tensors without a gradient."""

STEPS = 5
WARM = 3
"""Steps before a graph is captured."""


class Problem:
    """Tensors that are drawn to a point with noise, and an optimizer; gradients and loss always in the same memory."""

    def __init__(self, make: Callable[..., Any], dtype: torch.dtype, device: torch.device, **settings: Any) -> None:
        self.device = device
        self.params = [nn.Parameter(part.to(dtype)) for part in self._normal(seed=0)]
        self.grads = [torch.zeros_like(p) for p in self.params]
        self.loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=device)
        self.optimizer = make(self.params, **settings)
        self.fed = 0

    def _normal(self, seed: int) -> list[Tensor]:
        numbers = torch.Generator(self.device).manual_seed(seed)
        return [torch.randn(shape, generator=numbers, device=self.device) for shape in SHAPES]

    @torch.no_grad()
    def feed(self, without: Sequence[int] = ()) -> None:
        """The next gradients and their loss; none for some tensors."""
        self.fed += 1
        offsets = [p - noise.to(p.dtype) / 2 for p, noise in zip(self.params, self._normal(self.fed), strict=True)]
        self.loss.copy_(torch.stack([offset.square().mean(dtype=self.loss.dtype) for offset in offsets]).mean())
        for i, (p, grad, offset) in enumerate(zip(self.params, self.grads, offsets, strict=True)):
            p.grad = None if i in without else grad.copy_(offset)

    def step(self) -> None:
        """Take a step with what was fed last."""
        self.optimizer.step(loss=self.loss)

    def copies(self) -> list[Tensor]:
        """The parameters as they are."""
        return [p.detach().clone() for p in self.params]


def apart(one: Problem, other: Problem) -> float:
    """The largest difference of two parameters, as a share of 1 plus their size; infinite where one is not finite."""
    worst = 0.0
    for p, q in zip(one.copies(), other.copies(), strict=True):
        largest = ((p.double() - q.double()).abs() / (1 + q.double().abs())).max().item()
        worst = max(worst, largest if largest == largest else inf)
    return worst


def fused_is_eager(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> float:
    """The same five steps, fused and not."""
    eager, fused = (Problem(make, dtype, device, fused=fused) for fused in (False, True))
    before = eager.copies()
    for one in (eager, fused):
        for _ in range(STEPS):
            one.feed()
            one.step()
    assert not any(map(torch.equal, before, eager.params)), "a tensor did not move: this shows nothing"
    return apart(fused, eager)


def gradients_come_and_go(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> float:
    """The same, while tensors have no gradient for some steps: then they rest."""
    eager, fused = (Problem(make, dtype, device, fused=fused) for fused in (False, True))
    for one in (eager, fused):
        for without in GONE:
            before = one.copies()
            one.feed(without)
            one.step()
            moved = [i for i in without if not torch.equal(before[i], one.params[i])]
            assert not moved, f"tensors {moved} have no gradient and moved"
    return apart(fused, eager)


def nothing_waits(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> float:
    """No step waits for the device, once it is warm, whatever the learning rate and the gradients do."""
    for fused in (False, True):
        one = Problem(make, dtype, device, fused=fused)
        for without in ((), (), (1,), ()):
            one.feed(without)
            one.optimizer.param_groups[0]["lr"] *= 0.9
            if one.fed == 1:
                one.step()
            elif device.type == "cuda":
                with waiting_forbidden():
                    one.step()
            else:
                reads = count(one.step, device).host_reads
                assert reads == 0, f"{reads} values are read on the host"
    return 0.0


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Where torch would wait for the GPU it raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def graph_is_step(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> float:
    """A step captured in a CUDA graph and replayed, beside steps that are not; fused and eager."""
    worst = 0.0
    for fused in (False, True):
        plain, replayed = (Problem(make, dtype, device, fused=fused) for _ in range(2))
        plain.feed()
        replayed.feed()
        for _ in range(WARM):
            plain.step()
        replay = recorded(replayed.step, device)
        for _ in range(STEPS):
            plain.feed()
            plain.step()
            replayed.feed()
            replay()
        worst = max(worst, apart(replayed, plain))
    return worst


def recorded(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A step as a graph to replay, after three that warm it up; on the CPU, which has no graphs, the step itself."""
    if device.type != "cuda":
        for _ in range(WARM):
            step()
        return step
    here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        for _ in range(WARM):
            step()
    here.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def nan_moves_nothing(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> float:
    """A NaN in a gradient makes nothing of the step: to the bit."""
    one = Problem(make, dtype, device, fused=True, skip_nonfinite=True)
    one.feed()
    one.step()
    one.feed()
    one.grads[0].view(-1)[-1] = torch.nan
    before = one.copies()
    one.step()
    assert all(map(torch.equal, before, one.params)), "weights moved"
    assert one.optimizer.skipped.item() == 1, "the step was not counted as skipped"
    return 0.0


CHECKS: dict[str, Callable[[Callable[..., Any], torch.dtype, torch.device], float]] = {
    "fused is eager": fused_is_eager,
    "gradients come and go": gradients_come_and_go,
    "nothing waits": nothing_waits,
    "a graph is a step": graph_is_step,
    "a NaN moves nothing": nan_moves_nothing,
}


def examine(method: str, dtype: str, device: str) -> list[dict[str, Any]]:
    """All checks of a method: what differed, by how much at the most, and what went wrong, if anything."""
    found = []
    for name, check in CHECKS.items():
        error = ""
        difference = None
        try:
            difference = check(CHECKED[method], getattr(torch, dtype), torch.device(device))
            if not difference <= BOUNDS[dtype]:
                error = f"differs by {difference:.2g}, where {BOUNDS[dtype]:g} is allowed"
                difference = difference if difference < inf else None  # JSON has no infinity
        except Exception as wrong:  # whatever a kernel may raise: the other checks are made all the same
            error = " ".join(f"{type(wrong).__name__}: {wrong}".split())[:300]
        found.append({"method": method, "dtype": dtype, "check": name, "difference": difference, "error": error})
    return found


def examine_apart(method: str, dtype: str, device: str) -> list[dict[str, Any]]:
    """The same in a process of its own: a kernel that goes astray takes nobody else with it."""
    command = [sys.executable, __file__, "--device", device, "--check", method, "--dtype", dtype]
    try:
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=PATIENCE
        )
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        error = f"not done within {PATIENCE:.0f} seconds"
    except (IndexError, ValueError):
        error = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    else:
        return found
    return [{"method": method, "dtype": dtype, "check": name, "difference": None, "error": error} for name in CHECKS]


def checks_table(checks: Sequence[dict[str, Any]]) -> Table:
    """A method a row, a check a column: the largest difference over dtypes as a share of what is allowed."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="Checks: differences by their bounds")
    table.add_column("")
    for name in CHECKS:
        table.add_column(name, justify="right")
    for method in dict.fromkeys(one["method"] for one in checks):
        cells = []
        for name in CHECKS:
            here = [one for one in checks if (one["method"], one["check"]) == (method, name)]
            failed = [one["dtype"] for one in here if one["error"]]
            worst = max((one["difference"] / BOUNDS[one["dtype"]] for one in here if not one["error"]), default=0.0)
            cells.append(Text(f"✗ {', '.join(failed)}", style="red") if failed else Text(f"✓ {worst:.1g}"))
        table.add_row(method, *cells)
    return table


# --- the benchmark ---

FIRST = ("coolmomentum-fused", "koala-v-fused", "koala-m-fused", "koala-pp-fused", "arturo-fused")
"""Whose first steps are timed, on ResNet-18 in float32."""


class Captured:
    """An optimizer whose step is a graph that is replayed: what is left of it without Python."""

    def __init__(self, make: Callable[..., Any], params: Any) -> None:
        self.params = list(params)
        self.optimizer = make(self.params)
        self.replay: Callable[[], object] | None = None

    @property
    def state(self) -> Any:
        """The optimizer's."""
        return self.optimizer.state

    def step(self, **loss: Tensor) -> None:
        """The first one captures; the loss stays where it is."""
        if self.replay is None:
            self.replay = recorded(partial(self.optimizer.step, **loss), self.params[0].device)
        self.replay()


def methods() -> tuple[Method, ...]:
    """torch's own, ours fused, and both captured where they can be."""
    chosen = [one for one in METHODS if one.mode in ("fused", "foreach") and not one.apart]
    more = []
    for one in chosen:
        if one.mode == "fused":
            make: Any = one.make
            if one.name == "adamw-fused":
                make = partial(torch.optim.AdamW, lr=RATE, fused=True, capturable=True)
            against = one.against.replace("fused", "captured") if one.against else None
            name, make = one.name.replace("fused", "captured"), partial(Captured, make)
            more.append(dataclasses.replace(one, name=name, mode="captured", make=make, against=against))
    return (*chosen, *more)


def with_first_steps(part: Part, began: float, say: Callable[[str], object], left_out: list[str]) -> Part:
    """The same part with first steps of some methods, each in new processes."""
    rows = []
    task = {"set": part.set, "dtype": part.dtype, "device": part.device, "threads": part.threads}
    for row in part.rows:
        name = row.method.name
        if name in FIRST and time.monotonic() - began < FIRST_END:
            say(f"first steps of {row.method.title}")
            rows.append(dataclasses.replace(row, fresh=fresh(row.method, task, [])))
            continue
        if name in FIRST:
            left_out.append(f"first steps of {row.method.title}")
        rows.append(row)
    return dataclasses.replace(part, rows=tuple(rows))


# --- the command ---

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)


@app.command(help=__doc__)
def main(
    out: Annotated[Path | None, typer.Option(help="The record, if not benchmarks/records/gpu-DEVICE.json.")] = None,
    device: Annotated[str, typer.Option(hidden=True, help="cpu tries all but what needs a GPU.")] = "cuda",
    sets: Annotated[list[str], typer.Option("--set", hidden=True)] = ["gpt2", "resnet18"],  # noqa: B006
    only: Annotated[list[str] | None, typer.Option(hidden=True, help="Checks of these alone.")] = None,
    rounds: Annotated[int, typer.Option(hidden=True, min=3)] = 9,
    check: Annotated[str | None, typer.Option(hidden=True, help="Make the checks of one method, and no more.")] = None,
    dtype: Annotated[str, typer.Option(hidden=True, help="Of that.")] = "float32",
) -> None:
    """Check and measure."""
    began = time.monotonic()
    console, watch = wide(), Console(stderr=True, highlight=False)
    if device == "cuda" and not torch.cuda.is_available():
        watch.print(f"torch {torch.__version__} finds no CUDA device on this machine, and this is for one.")
        raise typer.Exit(1)
    if check is not None:
        print(json.dumps(examine(check, dtype, device)))
        return

    about = machine(device, threads=1)
    name = re.sub(r"[^a-z0-9]+", "-", about.get("GPU", device).lower()).strip("-")
    out = out or RECORDS / f"gpu-{name}.json"
    parts: list[Part] = []
    left_out: list[str] = []
    checks: list[dict[str, Any]] = []

    def keep() -> None:
        write(out, parts, about, checks=checks, left_out=left_out, seconds=round(time.monotonic() - began))

    with watch.status("") as status:

        def say(told: str) -> None:
            status.update(Text(f"{time.monotonic() - began:.0f} s: {told} ..."))

        def examined(method: str, dtype: str) -> list[dict[str, Any]]:
            if time.monotonic() - began > CHECKS_END:
                left_out.append(f"checks of {method} in {dtype}")
                return []
            say(f"checks of {method} in {dtype}")
            return examine_apart(method, dtype, device)

        todo = [(method, dtype) for method in only or CHECKED for dtype in BOUNDS]
        with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2))) as pool:
            checks += [one for found in pool.map(lambda one: examined(*one), todo) for one in found]
        keep()
        for set_name in sets:
            for half in ("float32", "bfloat16"):
                if time.monotonic() - began > PARTS_END:
                    left_out.append(f"{set_name} in {half}")
                    continue
                plan = Plan(set_name, half, device, rounds=rounds, first=False, memory=device == "cuda")
                try:
                    parts.append(measure(plan, methods(), (), say))
                except (ValueError, RuntimeError) as error:  # out of memory, for one
                    left_out.append(f"{set_name} in {half} ({' '.join(str(error).split())[:200]})")
                keep()
        for i, part in enumerate(parts):
            if (part.set, part.dtype) == (sets[-1], "float32"):
                parts[i] = with_first_steps(part, began, say, left_out)
        keep()

    console.print(checks_table(checks))
    console.print()
    for part in parts:
        show(console, part)
    failed = [one for one in checks if one["error"]]
    for one in failed:
        console.print(Text(f"FAILED: {one['method']}, {one['dtype']}, {one['check']}: {one['error']}"))
    if left_out:
        console.print(Text(f"Left out: {', '.join(left_out)}."))
    console.print(f"{len(checks) - len(failed)} of {len(checks)} checks passed. Raw numbers: {out}", soft_wrap=True)
    if failed or not parts:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
