"""The papers' own experiments by name. One is one class in one file.

`get_experiment` also takes `package.module:Class`.
"""

from functools import cache

from fallline.bench.names import make
from fallline.bench.repro._experiment import Design, Done, Experiment, Record, Stages

EXPERIMENTS = {
    "arturo-cifar": "fallline.bench.repro.arturo_cifar:ArturoCifar",
    "arturo-fmnist": "fallline.bench.repro.arturo_fmnist:ArturoFashion",
    "bfloat16": "fallline.bench.repro.rounding:Rounding",
    "coolmomentum-cifar": "fallline.bench.repro.coolmomentum_cifar:CoolMomentumCifar",
    "coolmomentum-cooling": "fallline.bench.repro.coolmomentum_cooling:CoolMomentumCooling",
    "coolmomentum-imagenet": "fallline.bench.repro.coolmomentum_imagenet:CoolMomentumImageNet",
    "koala-ablation-init": "fallline.bench.repro.koala_ablation_init:KoalaAblationInit",
    "koala-cifar": "fallline.bench.repro.koala_cifar:KoalaCifar",
    "koala-lm": "fallline.bench.repro.koala_lm:KoalaLanguage",
    "lodo-bowl": "fallline.bench.repro.lodo_bowl:LodoBowl",
    "lodo-memory": "fallline.bench.repro.lodo_memory:LodoMemory",
    "lodo-mnist": "fallline.bench.repro.lodo_mnist:LodoMnist",
    "lodo-rosenbrock": "fallline.bench.repro.lodo_rosenbrock:LodoRosenbrock",
}


@cache
def get_experiment(name: str) -> Experiment:
    """The experiment of that name, or of the class `package.module:Class`; `ValueError` when there is none."""
    experiment: Experiment = make("experiment", name, EXPERIMENTS, Experiment)
    return experiment


__all__ = ["EXPERIMENTS", "Design", "Done", "Experiment", "Record", "Stages", "get_experiment"]
