"""The papers' own experiments by name. One is one class in one file.

`get_experiment` also takes `package.module:Class`. Imports the tool and the library, not the claims and the pictures.
"""

from functools import cache

from fallline.bench.common.names import make
from fallline.papers.experiments._experiment import Case, Design, Done, Entry, Experiment, Stages
from fallline.papers.records import Record

EXPERIMENTS = {
    "arturo-cifar": "fallline.papers.experiments.arturo_cifar:ArturoCifar",
    "arturo-fmnist": "fallline.papers.experiments.arturo_fmnist:ArturoFashion",
    "bfloat16": "fallline.papers.experiments.rounding:Rounding",
    "coolmomentum-cifar": "fallline.papers.experiments.coolmomentum_cifar:CoolMomentumCifar",
    "coolmomentum-cooling": "fallline.papers.experiments.coolmomentum_cooling:CoolMomentumCooling",
    "coolmomentum-imagenet": "fallline.papers.experiments.coolmomentum_imagenet:CoolMomentumImageNet",
    "koala-ablation-init": "fallline.papers.experiments.koala_ablation_init:KoalaAblationInit",
    "koala-cifar": "fallline.papers.experiments.koala_cifar:KoalaCifar",
    "koala-lm": "fallline.papers.experiments.koala_lm:KoalaLanguage",
    "lodo-bowl": "fallline.papers.experiments.lodo_bowl:LodoBowl",
    "lodo-memory": "fallline.papers.experiments.lodo_memory:LodoMemory",
    "lodo-mnist": "fallline.papers.experiments.lodo_mnist:LodoMnist",
    "lodo-rosenbrock": "fallline.papers.experiments.lodo_rosenbrock:LodoRosenbrock",
}


@cache
def get_experiment(name: str) -> Experiment:
    """The experiment of that name, or of the class `package.module:Class`; `ValueError` when there is none."""
    experiment: Experiment = make("experiment", name, EXPERIMENTS, Experiment)
    return experiment


__all__ = ["EXPERIMENTS", "Case", "Design", "Done", "Entry", "Experiment", "Record", "Stages", "get_experiment"]
