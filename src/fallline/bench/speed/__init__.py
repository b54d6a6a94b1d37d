"""`fallline bench step`: what a step costs beside torch's own, in time, traffic, memory and first-step seconds.

It runs beside torch, numpy, scipy, rich and typer alone, as `python -m fallline.bench.speed` too: on a machine that has
a GPU and little else. Processes that time a first step import this package, so it loads only what a method is. It
imports the library, `runs` and `common`.
"""

from fallline.bench.speed.methods import METHODS, Method, Words

__all__ = ["METHODS", "Method", "Words"]
