"""The contenders: how each optimizer is made, and the space that its trials search.

The search space may be the most important factor behind a ranking of optimizers (Choi et al., 2019), so each is written
here with its source, printed in every report, and wide enough that the best setting seldom lies at an edge. Everyone
gets the same number of trials: a method with more to tune pays for it.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

import fallline
from fallline.arturo.arturo import PUBLISHED
from fallline.bench.common.names import needed, unknown
from fallline.bench.common.spaces import Choice, Range, Setting, Space, as_plain, dimension
from fallline.bench.contenders.schedules import DROPS, WARM_UP, Drops, parse_drops
from fallline.bench.tasks import Schedule, Task


class Team:
    """Several optimizers, each for its share of the parameters, behind the face of one."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The members' groups, one after another."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """The members' states, by parameter."""
        return {parameter: state for member in self.members for parameter, state in member.state.items()}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        """One step of every member."""
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in their order."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the members' states back."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)


AnyOptimizer = torch.optim.Optimizer | Team
Make = Callable[[Iterable[nn.Parameter], Mapping[str, Any], int | None], AnyOptimizer]
"""(parameters, settings, horizon) -> optimizer. The horizon is the number of steps over which a method that brings its
own schedule runs it down, None on a task where nothing is to run down."""


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


@dataclass(frozen=True)
class Contender:
    """One entry of a race."""

    name: str
    label: str
    make: Make
    space: Space
    """At most four dimensions; positive ones over their logarithm."""

    fixed: Mapping[str, Setting] = field(default_factory=dict)
    """Settings that are not tuned and not left at their defaults."""

    variant: Mapping[str, Setting] = field(default_factory=dict)
    """Settings that make it what it is, and those that it ships with as such: those of a run that gives none."""

    schedule: Schedule = "cosine"
    """How its rates run down unless another is asked for; `constant` for a method that cools by itself."""

    native: Schedule | None = None
    """The schedule of its paper, where that is another than the common cosine."""

    drops: Drops = DROPS
    """Of the schedule `step`."""

    rates: tuple[str, ...] = ("lr",)
    """The settings that the schedule multiplies."""

    schedule_note: str = ""
    """Its own schedule, in words."""

    ours: bool = False
    """Whether it is a method of this library."""

    matrices: bool = False
    """Whether it is for matrices, and has nothing to do without any."""

    source: str = ""
    """The method's paper, and where the space comes from."""

    def on(self, task: Task) -> "Contender":
        """This contender as it races on a task, which may change ranges, fix settings and forbid schedules."""
        changes = task.spaces.get(self.name, {})
        for name in changes:
            if name not in self.space:
                raise unknown(f"setting of {self.name} to change on {task.name}", name, self.space)
        resolved = {name: changes.get(name, dimension) for name, dimension in self.space.items()}
        space = {name: value for name, value in resolved.items() if isinstance(value, Range | Choice)}
        fixed = {name: value for name, value in resolved.items() if not isinstance(value, Range | Choice)}
        here = replace(self, space=space, fixed={**self.fixed, **fixed})
        return here if task.schedule == "cosine" else replace(here, schedule="constant", schedule_note="")

    def searching(self, changes: Mapping[str, Range | Choice | Setting]) -> "Contender":
        """This contender with other ranges, or with settings fixed; `ValueError` beyond four dimensions."""
        tuned = {**self.space, **{name: value for name, value in changes.items() if isinstance(value, Range | Choice)}}
        fixed = {name: value for name, value in changes.items() if not isinstance(value, Range | Choice)}
        space = {name: value for name, value in tuned.items() if name not in fixed}
        if len(space) > 4:
            raise ValueError(f"{self.name}: at most four settings are tuned, not {len(space)} ({', '.join(space)})")
        kept = {name: value for name, value in self.fixed.items() if name not in space}
        return replace(self, space=space, fixed={**kept, **fixed})

    def describe(self) -> dict[str, Any]:
        """What a report says of it, ready for JSON."""
        return {
            "label": self.label,
            "ours": self.ours,
            "space": {name: str(dimension) for name, dimension in self.space.items()},
            "ranges": {name: as_plain(dimension) for name, dimension in self.space.items()},
            "fixed": {k: v for k, v in {**self.variant, **self.fixed}.items() if k not in self.space},
            "schedule": self.schedule_note or self.schedule,
            "source": self.source,
        }

    def build(
        self, parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None
    ) -> AnyOptimizer:
        """As `make`; whatever its class may raise is a `ValueError` that names it."""
        try:
            return self.make(parameters, settings, horizon)
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.name} cannot be made with {dict(settings)}: {told}") from error

    def defaults(self, settings: Mapping[str, Any]) -> dict[str, inspect.Parameter] | None:
        """What may be set and what it is unless it is: the arguments of the class, and what this entry adds.

        None if it cannot be told.
        """
        for given in ({}, {"lr": 0.1}, settings):  # some have no default learning rate
            parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
            try:
                made = self.make(parameters, given, 1)
            except Exception:  # whatever an optimizer of somebody's own may raise
                continue
            member = made.members[0] if isinstance(made, Team) else made
            arguments = inspect.signature(type(member)).parameters
            if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in arguments.values()):
                return None
            added = {name: there.at(0.0) for name, there in self.space.items()} | dict(self.fixed)
            mine = {
                name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
                for name, value in added.items()
            }
            return {**mine, **dict(list(arguments.items())[1:])}
        return None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a `ValueError` for a setting that it does not have, or of another kind than its default."""
        known = self.defaults(settings)
        if known is None:
            return
        for name, value in settings.items():
            if name not in known:
                raise unknown(f"setting of {self.name}", name, known)
            if wanted := misfit(value, known[name]):
                raise ValueError(f"{name} of {self.name} is {wanted}, got {value!r}")

    def excuse(self, model: nn.Module) -> str | None:
        """Why it cannot take part with this model, if so."""
        if self.matrices and not any(p.ndim == 2 for p in model.parameters()):
            return f"{self.label} orthogonalises matrices, and this task has none"
        return None


OPEN = ("None", "Optional", "str", "Any", "Literal", "Callable")
"""In an annotation: the argument takes more than its default shows."""


def misfit(value: Any, argument: inspect.Parameter) -> str:
    """What an argument wants instead of a value, judged by its default; empty if the value will do."""
    default = argument.default
    if isinstance(default, tuple) and all(map(_is_finite, default)):
        fits = isinstance(value, tuple | list) and len(value) == len(default) and all(map(_is_finite, value))
        return "" if fits else f"{len(default)} finite numbers, as {default}"
    if not _is_finite(default) or any(word in str(argument.annotation) for word in OPEN):
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) or value in (0, 1) else "True or False"
    return "" if _is_finite(value) else f"a finite number, as {default:g}"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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

OWN = "this library's own (docs/beyond.md)"

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
        ),
        Contender(
            "koala-m",
            "KOALA-M",
            plain("koala-m"),
            {"lr": Range(0.1, 3.0), "qv": Range(1e-3, 10.0), "weight_decay": Range(1e-6, 1e-2)},
            native="step",
            ours=True,
            source="Davtyan et al. 2022; around its program's settings (lr 1, qv 0.01, a 0.9, weight decay 5e-4)",
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
        ),
        Contender(
            "koala-orthogonal",
            "Orthogonal KOALA",
            plain("koala-orthogonal"),
            ALONG,
            ours=True,
            source=f"{OWN}; around its defaults",
        ),
        Contender(
            "koala-orthogonal-unmeasured",
            "Orthogonal, no filter",
            plain("koala-orthogonal"),
            ALONG,
            variant={"measured": False},
            ours=True,
            source=f"{OWN}, without the loss: the direction alone, in steps of one length",
        ),
        Contender(
            "koala-gradient",
            "KOALA along the gradient",
            plain("koala-metric"),
            {**ALONG, "q": Range(1e-3, 10.0)},
            variant={"metric": "identity"},
            ours=True,
            source=f"{OWN}, along the averaged gradient: the filter alone",
        ),
        Contender(
            "koala-adam",
            "KOALA in Adam’s metric",
            plain("koala-metric"),
            {**ALONG, "q": Range(1e-7, 1e-2)},
            variant={"metric": "adam"},
            ours=True,
            source=f"{OWN}, along Adam's direction",
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
        ),
        Contender(
            "adamw",
            "AdamW",
            adamw,
            {"lr": Range(1e-4, 0.3), "beta1": Range(0.02, 0.5, "one minus log"), "weight_decay": Range(5e-3, 1.0)},
            fixed={"beta2": 0.999},
            source="Loshchilov and Hutter 2019; AlgoPerf's space, lr widened upwards for small networks",
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
        ),
    )
}

TEAM = ("koala-orthogonal", "koala-m", "coolmomentum", "sgd", "adamw")
"""Who races unless others are named, so that a race on two cores stays under three minutes: ours that are worth the
first try, not LODO, arTuRO and Muon, whose runs take longest (`bfloat16` products are slow on most CPUs)."""

ANY_LR = Range(1e-4, 1.0)
"""The learning rates of an optimizer without an entry, whose class has no default one."""


def space_of(name: str) -> Space:
    """What is tuned of an optimizer without an entry: its learning rate alone, two decades around the class's own.

    Nothing of a class that has none; `ANY_LR` where the class does not say, or cannot be made here.
    """
    try:
        defaults = fallline.create_optimizer(name, [nn.Parameter(torch.zeros(2, 2))]).defaults
    except Exception:  # whatever an optimizer of somebody's own may raise, now or when it is raced
        return {"lr": ANY_LR}
    if "lr" not in defaults:
        return {}
    try:
        middle = float(defaults["lr"])
        return {"lr": Range(float(f"{middle / 100:.3g}"), float(f"{middle * 100:.3g}"))}
    except (TypeError, ValueError):  # none, or none that is positive
        return {"lr": ANY_LR}


CLASSES = {
    "koalaplusplus": "koala-pp",
    "metrickoala": "koala-metric",
    "momentumkoala": "koala-m",
    "orthogonalkoala": "koala-orthogonal",
    "vanillakoala": "koala-v",
}
"""Names of this library's classes, in lower case, that are not those of their entries."""

VARIANT = re.compile(r"(?P<entry>.*?)(@(?P<schedule>[a-z]+)(?P<drops>(-[0-9.]+)+)?)?(#(?P<copy>\d+))?")
"""`sgd@linear`: under another schedule; `sgd@step-0.1-0.5`: with drops of its own, a factor and shares of the horizon;
`sgd#2`: the same once more under a name of its own."""


def spelled(name: str) -> str:
    """A name as a person may type it, as it stands in records: in lower case, and a class by its entry's name."""
    if ":" in name:
        return name
    entry, *rest = re.split(r"(?=[@#])", name.lower(), maxsplit=1)
    return "".join([CLASSES.get(entry, entry), *rest])


@cache
def get_contender(name: str) -> Contender:
    """The entry of that name, or one made for any that `fallline.create_optimizer` takes; else `ValueError`.

    `NAME@SCHEDULE` races it under another schedule than its entry's (`native` for its paper's), and `NAME#2` is a twin:
    the same method under another name, with a search of its own. `NAME@step-0.1-0.5-0.75` says when the schedule
    `step` drops the rates: to a tenth of what they were, after 50 % and after 75 % of the horizon.
    """
    variant = VARIANT.fullmatch(name)
    assert variant is not None  # the expression takes any text
    found = _get_entry(variant["entry"])
    if schedule := variant["schedule"]:
        schedules: dict[str, Schedule] = {known: known for known in get_args(Schedule)}
        schedules["native"] = found.native or found.schedule
        if schedule not in schedules:
            raise unknown("schedule", schedule, schedules)
        label = f"{found.label}, {schedule}"
        found = replace(found, name=name, label=label, schedule=schedules[schedule], schedule_note="")
        if drops := variant["drops"]:
            found = replace(found, drops=named_drops(name, found.schedule, drops))
    if copy := variant["copy"]:
        found = replace(found, name=name, label=f"{found.label} no. {copy}")
    return found


def named_drops(name: str, schedule: Schedule, text: str) -> Drops:
    """`-0.1-0.5-0.75` as drops; `ValueError` for another schedule than `step`, and for what is no share."""
    try:
        if schedule == "step":
            return parse_drops(text[1:], "-")
    except ValueError:
        pass
    raise ValueError(f"{name!r}: drops are written as in sgd@step-0.1-0.5-0.75, a factor and shares of the run")


def _get_entry(name: str) -> Contender:
    if name in CONTENDERS:
        return CONTENDERS[name]
    if ":" in name:
        label = name.rpartition(":")[2]
    elif name in (known := fallline.list_optimizers()):
        label = next((spelled for spelled in vars(torch.optim) if spelled.lower() == name), name)
    else:
        raise unknown("optimizer", name, [*CONTENDERS, *known, "package.module:Class"])
    source = "no entry of its own: lr alone, two decades to either side of its default"
    return Contender(name, label, plain(name), space_of(name), source=source)


def entered(name: str, task: Task, spaces: Mapping[str, Mapping[str, Any]]) -> Contender:
    """A contender as it races on a task, with what `spaces`, in plain values, changes in its search space."""
    changes = {setting: dimension(value) for setting, value in spaces.get(name, {}).items()}
    here = get_contender(name).on(task)
    for setting, value in changes.items():
        for one in (
            value.options if isinstance(value, Choice) else [value.at(0.0) if isinstance(value, Range) else value]
        ):
            here.check({setting: one})
    return here.searching(changes)


def under_schedules(names: Iterable[str], which: str) -> tuple[str, ...]:
    """Everyone under the common schedule, under their papers' own (`native`), or under `both`."""
    found: list[str] = []
    for name in names:
        entry = get_contender(name)
        if "@" in name or entry.native is None:
            found.append(name)
            continue
        common = name if entry.schedule == "cosine" else f"{name}@cosine"
        native = name if entry.schedule == entry.native else f"{name}@native"
        found += {"common": [common], "native": [native], "both": [common, native]}[which]
    return tuple(dict.fromkeys(found))
