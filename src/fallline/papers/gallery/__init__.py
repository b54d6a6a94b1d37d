"""Pictures of what the optimizers do, each made by a command from real runs: `fallline gallery`.

A picture is one function in one file: it computes, and then draws what it has computed. Imports the experiments, the
tool and the library.
"""

import importlib
from collections.abc import Callable, Mapping

from fallline.bench.common.names import unknown
from fallline.papers.gallery._picture import Drawn

Make = Callable[[int, int], Drawn]
"""(seed, jobs) -> picture."""

PICTURES: Mapping[str, str] = {
    "rosenbrock": "fallline.papers.gallery.ways:rosenbrock",
    "rastrigin": "fallline.papers.gallery.ways:rastrigin",
    "valley": "fallline.papers.gallery.ways:valley",
    "fall-line": "fallline.papers.gallery.ways:fall_line",
    "double-well": "fallline.papers.gallery.double_well:double_well",
    "lodo-hessian": "fallline.papers.gallery.lodo_hessian:lodo_hessian",
    "koala-filter": "fallline.papers.gallery.koala_filter:koala_filter",
    "trust-region": "fallline.papers.gallery.trust_region:trust_region",
    "rho": "fallline.papers.gallery.rho:rho",
}
"""Function of each, by name."""


def get_picture(name: str) -> Make:
    """The function that makes a picture; its docstring says what it shows. `ValueError` for an unknown name."""
    if name not in PICTURES:
        raise unknown("picture", name, PICTURES)
    module, _, function = PICTURES[name].partition(":")
    make: Make = getattr(importlib.import_module(module), function)
    return make


__all__ = ["PICTURES", "Drawn", "Make", "get_picture"]
