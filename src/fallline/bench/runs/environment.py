"""The machine and the versions that a race ran on, for its report."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import fallline


def environment(jobs: int) -> dict[str, str]:
    """Names and values to print; nothing that tells whose machine it is."""
    return {
        "fallline": fallline.__version__ + _commit(),
        "torch": torch.__version__,
        "scipy": version("scipy"),
        "Python": platform.python_version(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "workers": f"{jobs} of one thread, on {os.cpu_count()} cores",
        "load at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def _commit() -> str:
    """Of which commit this is a checkout, if it is one; nothing for an installed package."""
    root = Path(fallline.__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "src"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {told[0].strip()}{' with changes' if told[1].strip() else ''}"


def _processor() -> str:
    """The processor's name; `platform` knows it on some systems alone."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
