"""`python benchmarks/speed`: what a step costs beside torch's own, in time, traffic, memory and first-step seconds.

It needs torch, numpy, scipy, rich and typer alone, for a machine that has a GPU and little else; `PYTHONPATH=src` where
fallline is not installed. Processes that time a first step import this package, so it loads only what a method is.
"""

from fallline.bench.contenders import Words
from speed.methods import METHODS, Method

__all__ = ["METHODS", "Method", "Words"]
