"""The papers' own experiments by name. One is one class in one file.

`get_experiment` also takes `package.module:Class`.
"""

import importlib
from functools import cache

from fallline.bench.names import unknown
from fallline.bench.repro._experiment import Design, Done, Experiment, Record, Stages

EXPERIMENTS = {
    "lodo-bowl": "fallline.bench.repro.lodo_bowl:LodoBowl",
    "lodo-memory": "fallline.bench.repro.lodo_memory:LodoMemory",
    "lodo-rosenbrock": "fallline.bench.repro.lodo_rosenbrock:LodoRosenbrock",
}


@cache
def get_experiment(name: str) -> Experiment:
    """The experiment of that name, or of the class `package.module:Class`; `ValueError` when there is none."""
    path = EXPERIMENTS.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise unknown("experiment", name, EXPERIMENTS)
    try:
        experiment = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the experiment {name!r} cannot be imported: {error}") from error
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{name!r} is no experiment: it must be a subclass of fallline.bench.repro.Experiment")
    return experiment


__all__ = ["EXPERIMENTS", "Design", "Done", "Experiment", "Record", "Stages", "get_experiment"]
