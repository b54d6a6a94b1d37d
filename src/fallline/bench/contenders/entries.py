"""The table of contenders, with the search space of each.

The search space may be the most important factor behind a ranking of optimizers (Choi et al., 2019). Each is written
here with its source, printed in every report, and wide enough that the best setting seldom lies at an edge. All
contenders get the same number of trials, so a method with more settings to tune pays for it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import fallline
from fallline.arturo.arturo import PUBLISHED
from fallline.bench.common.names import needed
from fallline.bench.common.spaces import Choice, Range, Setting, Space
from fallline.bench.contenders.contender import AnyOptimizer, Contender, Make, Team
from fallline.bench.contenders.schedules import WARM_UP
from fallline.bench.contenders.step import Step, Words


def plain(name: str) -> Make:
    """What `fallline.create_optimizer` knows under this name, the settings handed on as they are."""

    def make(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None) -> AnyOptimizer:
        return fallline.create_optimizer(name, parameters, **settings)

    return make


def coolmomentum(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None) -> AnyOptimizer:
    """Cooling over the whole run."""
    return fallline.create_optimizer("coolmomentum", parameters, **{"cool_steps": horizon, **settings})


def split_betas(settings: dict[str, Any]) -> Any:
    """Torch's one argument `betas`, taken out of the settings: given as such, or as beta1 and beta2."""
    apart = {name: settings.pop(name) for name in ("beta1", "beta2") if name in settings}
    if "betas" not in settings:
        return apart.get("beta1", 0.9), apart.get("beta2", 0.999)
    if apart:
        raise ValueError(f"betas and {' and '.join(apart)} say the same: give one of them")
    return settings.pop("betas")


def adamw(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None) -> AnyOptimizer:
    """The two betas are one argument in torch."""
    settings = dict(settings)
    return torch.optim.AdamW(parameters, betas=split_betas(settings), **settings)


def muon(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None) -> AnyOptimizer:
    """Muon orthogonalises matrices; AdamW takes the rest."""
    parameters, settings = list(parameters), dict(settings)
    aside = {"weight_decay": settings["weight_decay"]} if "weight_decay" in settings else {}
    if "adamw_lr" in settings:
        aside["lr"] = settings.pop("adamw_lr")
    matrices = torch.optim.Muon([p for p in parameters if p.ndim == 2], **settings)
    rest = [p for p in parameters if p.ndim != 2]
    if not rest:
        return matrices
    return Team(matrices, torch.optim.AdamW(rest, **aside))


def lodo(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None) -> AnyOptimizer:
    """Its network is drawn anew in every run."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    return fallline.create_optimizer("lodo", parameters, **{"generator": generator, **settings})


def schedulefree_adamw(
    parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None
) -> AnyOptimizer:
    """A warm-up as long as everybody's; the first beta is the average's share in the point where gradients are taken.

    It refuses to step before `train()` has put it at that point.
    """
    package = needed("schedulefree", "Schedule-Free", extra="bench")
    settings = {"warmup_steps": 0 if horizon is None else max(1, round(WARM_UP * horizon)), **settings}
    optimizer = package.AdamWScheduleFree(parameters, betas=split_betas(settings), **settings)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def schedulefree_sgd(
    parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None
) -> AnyOptimizer:
    """The same without a metric; the average's share goes by the name of momentum."""
    package = needed("schedulefree", "Schedule-Free", extra="bench")
    settings = {"warmup_steps": 0 if horizon is None else max(1, round(WARM_UP * horizon)), **settings}
    optimizer = package.SGDScheduleFree(parameters, **settings)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def published(setting: Callable[[Mapping[str, float]], float], widened: float) -> Range:
    """From the smallest to the largest among arTuRO's published settings, and by a factor to either side."""
    values = [setting(settings) for settings in PUBLISHED.values()]
    return Range(float(f"{min(values) / widened:.2g}"), float(f"{max(values) * widened:.2g}"))


FILTER: Space = {"lr": Range(0.1, 3.0), "q": Range(1e-3, 10.0), "weight_decay": Range(1e-6, 1e-2)}
"""Of the KOALAs without velocities."""

SECOND_MOMENT: Mapping[str, Setting] = {
    "curvature": "second-moment",
    "lr": 5e-3,
    "process_noise": 0.5,
    "measurement_noise": 1.0,
    "beta2": 0.95,
    "reg_weight": 0.3,
    "weight_decay": 0.3,
}
"""Of arTuRO with Adam's curvature: the defaults of its class are for the curvature that it learns."""

ALONG: Space = {
    "q": Range(1e-4, 1e-1),
    "weight_decay": Range(1e-3, 1.0),
    "beta": Range(0.02, 0.5, "one minus log"),
}
"""Of the KOALAs along a direction."""


def with_decay(step: Step) -> tuple[Step, Step]:
    """A step of KOALA's, and the same with weight decay, for which the norms read the parameters too."""
    assert step.words is not None
    words = replace(step.words, weights=step.words.weights + 1)
    settings = {**step.settings, "weight_decay": 5e-4}
    return step, replace(
        step, name=f"{step.name}-decay", label=f"{step.label}, weight_decay", words=words, settings=settings
    )


OWN = "this library's own (docs/beyond.md)"

# Colours after Okabe and Ito (2008), darkened or lightened for the ground. Each words' comment names the tensors that a
# pass reads; those that it writes.
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            "arturo",
            "arTuRO",
            plain("arturo"),
            {
                "lr": published(lambda s: s["lr"], widened=3),
                "reg_weight": published(lambda s: s["reg_weight"], widened=3),
                "process_noise": published(lambda s: s["process_noise"] / s["measurement_noise"], widened=10),
            },
            fixed={"measurement_noise": 1.0},  # only ratios of the filter's noises matter
            native="step",
            drops=(0.006, (0.5, 0.75)),
            schedule_note="cosine, of the bound lr: the length of a step goes with its square root",
            ours=True,
            source="Dahlinger et al. 2023; its program's six settings, lr and reg_weight widened by 3, process_noise / "
            "measurement_noise by 10, as pilot runs on small networks needed",
            colour=("#2e1a86", "#8a70f8", "#5a50d0"),
            # Finite: g. Filter: p, g and six of state; five of them. Move: p, precision, slope, intercept; p,
            # precision. Newton's passes before: p, precision, slope, intercept; eager is slow enough without them.
            steps=(
                Step("arturo", "ArTuRO", Words(5, 15), 6, against="adamw-fused", target=3.3, per_word=False),
                Step(
                    "arturo-newton",
                    "ArTuRO, newton_iters=4",
                    Words(9, 27),
                    6,
                    {"newton_iters": 4},
                    against="adamw-fused",
                    target=5.9,
                    eager=False,
                ),
            ),
        ),
        Contender(
            "arturo-second-moment",
            "arTuRO, second moment",
            plain("arturo"),
            {
                "lr": Range(1e-3, 1e-1),
                "process_noise": Range(0.03, 3.0),
                "beta2": Range(0.01, 0.3, "one minus log"),
                "weight_decay": Range(0.03, 3.0),
            },
            variant=SECOND_MOMENT,
            schedule_note="cosine, of the bound lr: the length of a step goes with its square root",
            ours=True,
            source="this library's own, arTuRO with Adam's curvature; around what pilot runs on small networks needed",
            colour=("#8a2be2", "#c79bff", "#a05cf0"),
        ),
        Contender(
            "koala-v",
            "KOALA-V",
            plain("koala-v"),
            FILTER,
            fixed={"sigma": 0.1},
            native="step",
            ours=True,
            source="Davtyan et al. 2022; around its program's settings (lr 1, sigma 0.1, weight decay 5e-4)",
            colour=("#c85200", "#ff9a56", "#d55e00"),
            # Norms: g; then p, g; p.
            steps=with_decay(
                Step("koala-v", "VanillaKOALA", Words(4, 0), 0, loss=True, against="sgd-fused", target=1.15)
            ),
        ),
        Contender(
            "koala-m",
            "KOALA-M",
            plain("koala-m"),
            {"lr": Range(0.1, 3.0), "qv": Range(1e-3, 10.0), "weight_decay": Range(1e-6, 1e-2)},
            native="step",
            ours=True,
            source="Davtyan et al. 2022; around its program's settings (lr 1, qv 0.01, a 0.9, weight decay 5e-4)",
            colour=("#a83a86", "#f0a3d6", "#cc5fa4"),
            # Norms as KOALA-V; then p, g, velocity, average; p, velocity, average. q_rule=fixed is without the average.
            steps=(
                *with_decay(
                    Step("koala-m", "MomentumKOALA", Words(4, 4), 2, loss=True, against="adamw-fused", target=1.5)
                ),
                Step(
                    "koala-m-fixed",
                    "MomentumKOALA, q_rule=fixed",
                    Words(4, 2),
                    1,
                    {"q_rule": "fixed"},
                    loss=True,
                    against="adamw-fused",
                ),
            ),
        ),
        Contender(
            "koala-pp",
            "KOALA++",
            plain("koala-pp"),
            FILTER,
            fixed={"sigma": 0.1},
            native="step",
            ours=True,
            source="Xia et al. 2025; around its program's settings (lr 1 and 2, sigma and q 0.1 and 0.2, weight decay "
            "1e-4 and 5e-4)",
            colour=("#6e1423", "#e2556d", "#a53f49"),
            # Products: g, v, H; then p, g, v, H; p, v, H.
            steps=(Step("koala-pp", "KOALAPlusPlus", Words(4, 6), 2, loss=True, against="adamw-fused", target=1.8),),
        ),
        Contender(
            "koala-orthogonal",
            "Orthogonal KOALA",
            plain("koala-orthogonal"),
            ALONG,
            ours=True,
            source=f"{OWN}; around its defaults",
            colour=("#d6004f", "#ff2da0", "#f0145a"),
            # Products of matrices bound it. Beside the averaged gradient, a direction is held until the step is done.
            steps=(Step("koala-orthogonal", "OrthogonalKOALA", None, 2, loss=True, apart=True, sets=("resnet18",)),),
        ),
        Contender(
            "koala-orthogonal-unmeasured",
            "Orthogonal, no filter",
            plain("koala-orthogonal"),
            ALONG,
            variant={"measured": False},
            ours=True,
            source=f"{OWN}, without the loss: the direction alone, in steps of one length",
            colour=("#7a4b58", "#d3a3b0", "#a4707e"),
        ),
        Contender(
            "koala-gradient",
            "KOALA along the gradient",
            plain("koala-metric"),
            {**ALONG, "q": Range(1e-3, 10.0)},
            variant={"metric": "identity"},
            ours=True,
            source=f"{OWN}, along the averaged gradient: the filter alone",
            colour=("#7d5a1e", "#d9b46c", "#a9822f"),
        ),
        Contender(
            "koala-adam",
            "KOALA in Adam’s metric",
            plain("koala-metric"),
            {**ALONG, "q": Range(1e-7, 1e-2)},
            variant={"metric": "adam"},
            ours=True,
            source=f"{OWN}, along Adam's direction",
            colour=("#064f4f", "#7df5ee", "#2a8c90"),
            # Finite: g. Averages: g and two of state; these. Slope: g and both. Then p, g and both; p.
            steps=(Step("koala-metric", "MetricKOALA", Words(6, 8), 2, loss=True, against="adamw-fused"),),
        ),
        Contender(
            "coolmomentum",
            "CoolMomentum",
            coolmomentum,
            {
                "lr": Range(1e-3, 5.0),
                "rho_0": Range(1e-3, 1.0, "one minus log"),
                "schedule": Choice(("exponential", "linear")),
            },
            schedule="constant",
            native="constant",
            schedule_note="its own: the momentum cools over the whole run, the learning rate stays",
            ours=True,
            source="Borysenko and Byshkin 2021 (lr 0.01 … 0.6, rho_0 0.99); lr widened upwards, where the best lie",
            colour=("#0067a8", "#62bdf2", "#1b86d1"),
            # p, g, displacement; p, displacement. With skip_nonfinite a pass over g before.
            steps=(
                Step("coolmomentum", "CoolMomentum", Words(3, 2), 1, against="sgd-fused", target=1.05),
                Step(
                    "coolmomentum-skip",
                    "CoolMomentum, skip_nonfinite",
                    Words(4, 2),
                    1,
                    {"skip_nonfinite": True},
                    against="sgd-fused",
                    target=1.35,
                ),
            ),
        ),
        Contender(
            "lodo",
            "LODO",
            lodo,
            {"lr": Range(0.05, 5.0), "meta_lr": Range(1e-5, 1e-2), "beta": Range(0.05, 1.0, "one minus log")},
            rates=("lr", "meta_lr"),
            schedule_note="cosine, of lr and of meta_lr",
            ours=True,
            source="Liao et al. 2023; around its program's settings (lr 0.085 … 1, meta_lr 8e-6 … 1e-3, beta 0 … 0.93)",
            colour=("#4f5d00", "#bccb3f", "#849410"),
            steps=(Step("lodo", "LODO", None, 417, {"meta_lr": 1e-9}, sets=("resnet18",), apart=True),),
        ),
        Contender(
            "sgd",
            "SGD",
            plain("sgd"),
            {
                "lr": Range(1e-3, 3.0),
                "momentum": Range(0.01, 0.5, "one minus log"),
                "weight_decay": Range(1e-6, 1e-2),
            },
            source="Robbins and Monro 1951, Polyak 1964; the range that pilot runs on small networks needed",
            colour=("#5b6470", "#aab4c0", "#7d8590"),
            dash="dashdot",
        ),
        Contender(
            "adamw",
            "AdamW",
            adamw,
            {"lr": Range(1e-4, 0.3), "beta1": Range(0.02, 0.5, "one minus log"), "weight_decay": Range(5e-3, 1.0)},
            fixed={"beta2": 0.999},
            source="Loshchilov and Hutter 2019; AlgoPerf's space, lr widened upwards for small networks",
            colour=("#00805d", "#35c99b", "#009e73"),
            dash="dash",
        ),
        Contender(
            "muon",
            "Muon",
            muon,
            {
                "lr": Range(1e-3, 1e-1),
                "weight_decay": Range(1e-3, 1e-1),
                "adamw_lr": Range(1e-4, 1e-1),
                "momentum": Range(0.02, 0.5, "one minus log"),
            },
            matrices=True,
            source="Jordan et al. 2024; the range of AdamW's momentum, and AdamW's own lr for biases (adamw_lr) up to "
            "the top of AdamW's range",
            colour=("#946200", "#eac04e", "#b8860b"),
            dash="dot",
        ),
        Contender(
            "schedulefree-adamw",
            "Schedule-Free AdamW",
            schedulefree_adamw,
            {"lr": Range(1e-3, 0.3), "beta1": Range(0.02, 0.1, "one minus log"), "weight_decay": Range(5e-3, 1.0)},
            fixed={"beta2": 0.999},
            schedule="constant",
            native="constant",
            schedule_note="none, after a warm-up over 5 % of the run: measured at an average of its points",
            source="Defazio et al. 2024; its authors' advice (lr 1 to 10 times AdamW's, beta 0.9 … 0.98), lr up to the "
            "top of AdamW's range, AdamW's decay",
            colour=("#37751a", "#8bd257", "#5a9e30"),
            dash="longdashdot",
        ),
        Contender(
            "schedulefree-sgd",
            "Schedule-Free SGD",
            schedulefree_sgd,
            {"lr": Range(1e-2, 10.0), "momentum": Range(0.02, 0.1, "one minus log"), "weight_decay": Range(1e-6, 1e-2)},
            schedule="constant",
            native="constant",
            schedule_note="none, after a warm-up over 5 % of the run: measured at an average of its points",
            source="Defazio et al. 2024; its authors' advice (lr 10 to 50 times SGD's, beta 0.9 … 0.98), SGD's decay",
            colour=("#6b5b95", "#bba9e6", "#8f7cc0"),
        ),
    )
}

TEAM = ("koala-orthogonal", "koala-m", "coolmomentum", "sgd", "adamw")
"""Who races unless others are named, so that a race on two cores stays under three minutes: ours that are worth the
first try, not LODO, arTuRO and Muon, whose runs take longest (`bfloat16` products are slow on most CPUs)."""
