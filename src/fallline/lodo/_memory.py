"""How much memory is left."""

import os
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that could still be allocated on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    available = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    if not available and hasattr(os, "sysconf"):
        available = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    container = [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.isdecimal()]  # else "max"
    return min(available + container, default=None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
