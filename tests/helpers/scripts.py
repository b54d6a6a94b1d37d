"""Programs of the project that are no modules of the package: examples/, benchmarks/, docs/."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """The program at a path from the project's root as a module, its main block not run."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module
