"""What a step of LODO costs, in time and memory, beside torch's fused AdamW on the same parameters.

    python benchmarks/lodo.py [PARAMETERS]

One process, one thread; about a minute, most of it torch.compile. Needs torch and fallline alone.
"""

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fallline import LODO

RUNS = 15
FORMS = {
    "LODO, eager": {},
    "LODO": {"fused": True},
    "LODO, block_size 8, depth 8": {"fused": True, "block_size": 8, "depth": 8},
    "LODO, second_moment block": {"fused": True, "second_moment": "block"},
    "LODO, both": {"fused": True, "block_size": 8, "depth": 8, "second_moment": "block"},
    "LODO, meta_optimizer sgd": {"fused": True, "meta_optimizer": "sgd"},
    "LODO, depth 8": {"fused": True, "depth": 8},
}


def milliseconds(*steps: Callable[[], object]) -> list[float]:
    """The fastest of several interleaved runs of each."""
    best = [float("inf")] * len(steps)
    for run in range(RUNS + 2):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if run >= 2:
                best[i] = min(best[i], 1e3 * (time.perf_counter() - start))
    return best


def parameter(n: int) -> nn.Parameter:
    """With a gradient."""
    p = nn.Parameter(torch.randn(n))
    p.grad = torch.randn(n)
    return p


def adamw(n: int) -> Callable[[], object]:
    """A step on n numbers."""
    return torch.optim.AdamW([parameter(n)], fused=True).step


def gathers(width: int) -> Callable[[], object]:
    """Those of a step: in 16 layers, two columns and one, up and down (the last two down are spared)."""
    orders = [torch.randperm(width).int() for _ in range(16)]
    one, two = torch.randn(1, width), torch.randn(2, width)

    def run() -> None:
        for columns, count in ((two, 31), (one, 32)):
            for i in range(count):
                torch.index_select(columns, 1, orders[i % 16])

    return run


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(n: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    optimizers = [LODO([parameter(n)], **settings) for settings in FORMS.values()]
    network = optimizers[1].networks[0]
    theta = network.state["theta"].numel()
    steps = [optimizer.step for optimizer in optimizers]
    same, many, moves, *times = milliseconds(adamw(n), adamw(theta), gathers(network.width), *steps)

    print(f"{processor()}, one thread, torch {torch.__version__}; {n:,} parameters; best of {RUNS}\n")
    print("| optimizer | ms a step | x AdamW | state, bytes a parameter |\n| --- | --- | --- | --- |")
    print(f"| AdamW, fused | {same:.2f} | 1 | 8 |")
    for name, optimizer, took in zip(FORMS, optimizers, times, strict=True):
        held = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
        print(f"| {name} | {took:.1f} | {took / same:,.0f} | {held / n:,.0f} |")
    # A step reads every block four times and once more for Adam, which moves six words where it reads and writes three
    # tensors: ten in all, nine where the blocks are still in a cache. AdamW moves seven a number.
    floor = many * 9 / 7
    megabytes = [words * 4 * theta / 1e6 for words in (9, 10)]
    print(
        f"\nTheta has {theta:,} numbers. AdamW on as many takes {many:.1f} ms, for 7 words a number. A step of LODO\n"
        f"moves 9 to 10, {megabytes[0]:,.0f} to {megabytes[1]:,.0f} MB: no less than {floor:.1f} ms. Its {2 * 31 + 32} "
        f"random gathers of\n{network.width:,} numbers take {moves:.1f} ms alone: {floor + moves:.1f} ms in all."
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 94_696)
