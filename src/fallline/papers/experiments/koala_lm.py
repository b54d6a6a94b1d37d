"""KOALA on language: two LSTMs and a transformer on Penn Treebank and WikiText-2 (Davtyan et al. 2022, supplement)."""

from typing import ClassVar

from fallline.bench.common.spaces import Range
from fallline.papers.experiments._experiment import Case, Entry, Experiment
from fallline.papers.experiments.koala_cifar import PAPER

TEXTS = {"ptb": "Penn Treebank", "wikitext2": "WikiText-2"}

NETWORKS = {
    "lstm": "LSTM 2×200",
    "lstm-large": "LSTM 2×1500",
    "transformer": "transformer of 2 layers and 2 heads",
}

RIVALS = ("SGD", "Adam", "KOALA-M")

PERPLEXITIES = {
    ("ptb", "lstm"): (207.7, 123.6, 110.1),
    ("wikitext2", "lstm"): (216.62, 166.49, 124.69),
    ("ptb", "lstm-large"): (112.19, 81.27, 81.57),
    ("wikitext2", "lstm-large"): (145.7, 94.39, 89.64),
    ("ptb", "transformer"): (134.41, 140.13, 129.45),
    ("wikitext2", "transformer"): (169.04, 189.66, 179.81),
}
"""The supplement's perplexities of SGD, Adam and KOALA-M."""

ENTRIES = (
    Entry(
        "SGD",
        "sgd@constant",
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 10, "momentum": Range(0.03, 0.3, "one minus log")},
        "not published: the paper searched a grid; lr 0.1 and momentum 0.9, as on CIFAR, were chosen here",
    ),
    Entry(
        "Adam",
        "adam@constant",
        {"lr": 1e-3},
        {"lr": 10},
        "not published: the paper searched a grid; torch's default was chosen here",
    ),
    Entry(
        "KOALA-M",
        "koala-m@constant",
        {"lr": 1.0, "sw": 0.1, "sv": 0.1, "a": 0.9, "qw": 0.01, "qv": 0.01, "alpha_r": 0.9},
        {"lr": 3, "qv": 10},
        "Davtyan et al. 2022, supplement: lr 1; the others are its program's defaults",
    ),
)


def case(text: str, network: str) -> Case:
    """A cell of the supplement's table."""
    return Case(
        f"{TEXTS[text]}, {NETWORKS[network]}",
        f"{text}-{network}",
        ENTRIES,
        "perplexity",
        dict(zip(RIVALS, PERPLEXITIES[text, network], strict=True)),
        "Davtyan et al. 2022, supplement: perplexity",
    )


class KoalaLanguage(Experiment):
    """KOALA-M against SGD and Adam on words."""

    name: ClassVar[str] = "koala-lm"
    summary: ClassVar[str] = (
        "the next word of Penn Treebank and WikiText-2: LSTM 2×200, LSTM 2×1500 and a transformer with SGD, Adam and "
        "KOALA-M; at CPU scale the next letter of tiny Shakespeare"
    )
    paper: ClassVar[str] = PAPER
    full: ClassVar[tuple[Case, ...]] = tuple(case(text, network) for network in NETWORKS for text in TEXTS)
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "tiny Shakespeare, GPT of 4 layers, 400 steps",
            "shakespeare-gpt@steps=400,evaluations=2",
            ENTRIES,
            "loss",
            source="none: the paper has no such task",
        ),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The supplement gives networks, dropout 0.65 and tied embeddings; batch, context and number of epochs were not "
        "found: 20 streams of 35 words and 40 epochs, as in PyTorch's example of a word language model.",
        "No schedule is given: the learning rates are constant, and no gradient is clipped.",
        "KOALA: R is the mean square of the losses of single words; the paper does not say of what.",
        "Full scale: SGD and Adam run at one setting each, chosen here, where the paper searched a grid.",
        "CPU scale: another task, letters instead of words: a GPT of 4 layers and width 128 on tiny Shakespeare, 400 "
        "steps. In a minute the small LSTM learns no more of Penn Treebank than how often a word occurs.",
    )
    run_seconds: ClassVar[float] = 50.0
    gpu_time: ClassVar[str] = "not measured, and no figure found"
    cpu_time: ClassVar[str] = (
        "3 to 5 minutes an epoch for the small LSTM on one core: 2 to 3 hours a run of 40 epochs; not to be done with "
        "the large one"
    )
