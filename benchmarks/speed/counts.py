"""What happens in one step: operations or kernel launches, and how often the host reads a tensor's value.

On the CPU both are told by torch's profiler, which sees compiled steps as they run. (A `TorchDispatchMode` would see
the same reads, but torch refuses to run compiled functions under one.)
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"})
"""Operations whose result the host waits for."""

ASKING = frozenset({"aten::item", "aten::is_nonzero", "aten::allclose"})
"""What Python calls to get there. Under any other operation a read is torch's own, of a scalar that the host has."""

GUARDS = "TorchDynamo Cache Lookup"
"""Compares numbers that the host has with those that a graph was compiled for."""

LAUNCHES = ("LaunchKernel", "GraphLaunch")
"""In the names of what launches kernels: cudaLaunchKernelExC, cuLaunchKernelEx and their like; or a graph of them."""

SYNC = "synchronizing CUDA operation"
"""In torch's warning of one."""


@dataclass(frozen=True)
class Counts:
    """Of one step."""

    launches: int
    """Kernels launched; on the CPU, operations that torch's dispatcher was asked for."""

    host_reads: int
    """How often the host read a value of the device, or would have waited for it if there were one."""


def count(step: Callable[[], object], device: torch.device) -> Counts:
    """Count in one step that is warm."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell the terminal that it starts
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    for _ in range(2 if cuda else 1):  # on a GPU the first profile of a process also sets up what records it
        with profile(activities=activities, acc_events=True) as seen:
            step()
            if cuda:
                torch.cuda.synchronize(device)
    events: list[Any] = list(seen.events() or ())
    if not cuda:
        roots = [event for event in events if event.cpu_parent is None]
        return Counts(operations(roots), host_reads(roots))
    return Counts(sum(any(word in event.name for word in LAUNCHES) for event in events), synchronizations(step))


def operations(events: Iterable[Any]) -> int:
    """Innermost `aten` operations that compute: neither views nor allocations. A compiled graph shows none."""
    found = 0
    for event in events:
        inner = operations(event.cpu_children)
        found += inner or (event.name.startswith("aten::") and not _idle(event.name))
    return found


def host_reads(events: Iterable[Any]) -> int:
    """Reads of a tensor's value that Python asks for; `nonzero`, whose size the host must know, from anywhere."""

    def reads(event: Any, asked: bool) -> int:
        if event.name in READS and (asked or event.name == "aten::nonzero"):
            return 1
        asked = asked and event.name != GUARDS and (not event.name.startswith("aten::") or event.name in ASKING)
        return sum(reads(child, asked) for child in event.cpu_children)

    return sum(reads(event, True) for event in events)


def synchronizations(step: Callable[[], object]) -> int:
    """How often torch says that a step waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(SYNC in str(warning.message) for warning in heard)


@functools.cache
def _idle(name: str) -> bool:
    """Whether an operation computes nothing: it allocates, answers, or returns another view of what it was given."""
    if name in READS or name.startswith(("aten::empty", "aten::new_empty", "aten::resize", "aten::result_type")):
        return True
    schemas = torch._C._jit_get_schemas_for_operator(name)
    views = [out.alias_info is not None and not out.alias_info.is_write for one in schemas for out in one.returns]
    return bool(views) and all(views)
