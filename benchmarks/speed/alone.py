"""A method in a process of its own: `python -m speed.alone '{...}'` prints what it found as JSON.

What is imported before the first step would be missing in it, so this module imports little.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from speed.ground import DTYPES, Ground, Stepper, lay
from speed.methods import all_methods
from speed.shapes import get_set

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""glibc's numbers of two settings of `mallopt`."""

STEPS = 3
"""Whose peak of memory is taken, after the first."""


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The first step, and then the memory of some more.

    Args:
        task: `method`, `set`, `dtype`, `device`, `threads`, and `files` with more methods.

    Returns:
        `seconds` of the first step; bytes of `temporaries` in the steps after, None where the system does not tell.
    """
    torch.set_num_threads(task["threads"])
    method = all_methods(map(Path, task["files"]))[task["method"]]
    ground = lay(get_set(task["set"]), DTYPES[task["dtype"]], task["device"])
    stepper = Stepper(method, ground)
    wait(ground)
    start = time.perf_counter()
    stepper.step()
    wait(ground)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "temporaries": temporaries(stepper, ground)}


def wait(ground: Ground) -> None:
    """Until the device has done its work."""
    if ground.device.type == "cuda":
        torch.cuda.synchronize(ground.device)


def temporaries(stepper: Stepper, ground: Ground) -> int | None:
    """Bytes that steps take at their peak, beyond all that stays: parameters, gradients, state, code."""
    if ground.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ground.device)
        before = torch.cuda.memory_allocated(ground.device)
        for _ in range(STEPS):
            stepper.step()
        return torch.cuda.max_memory_allocated(ground.device) - before
    return_what_is_free()
    stepper.step()  # once more: what it imports or keeps from now on is no temporary
    return_what_is_free()
    try:
        CLEAR.write_text("5")  # the peak starts from here again
        before_step = resident("VmRSS")
        for _ in range(STEPS):
            stepper.step()
        return max(0, resident("VmHWM") - before_step)
    except (OSError, StopIteration):
        return None


def return_what_is_free() -> None:
    """Have glibc give free memory back to the system, now and from now on: else the process's size tells little."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 64 * 1024)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 1024)
        libc.malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # another C library
        return


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS, or at most since the last look VmHWM."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
