"""The machine and the versions that a race ran on, for its report."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import fallline


def environment(jobs: int) -> dict[str, str]:
    """Names and values to print; nothing that tells whose machine it is."""
    return {
        "fallline": fallline.__version__,
        "torch": torch.__version__,
        "scipy": version("scipy"),
        "Python": platform.python_version(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "workers": f"{jobs} of one thread, on {os.cpu_count()} cores",
    }


def _processor() -> str:
    """The processor's name; `platform` knows it on some systems alone."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
