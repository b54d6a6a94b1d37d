"""Entries for our optimizers in the form of torch's own test table, ``torch.testing._internal.common_optimizers``."""

from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

import fallline
from fallline._settings import choices, intervals

Settings = dict[str, Any]

SCHEDULERS = (
    [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
    [lambda opt: ReduceLROnPlateau(opt)],
    [lambda opt: LinearLR(opt, 0.5, total_iters=4), lambda opt: ExponentialLR(opt, 0.99)],
    [lambda opt: CosineAnnealingLR(opt, 100)],
    [lambda opt: OneCycleLR(opt, opt.param_groups[0]["lr"], total_steps=60, cycle_momentum=False)],
)


def halve(s: torch.Tensor) -> torch.Tensor:
    """A schedule of momentum, or a target of the loss, by a callable that pickle finds."""
    return (1 - s) / 2


def no_target(loss: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(loss)


# Of every class: each keyword of the constructor at least once, at a value that is not its default.
ALL: Settings = {
    "default": {},
    "lr": {"lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.02)},
    "weight decay": {"weight_decay": 0.01},
    "stochastic rounding": {"stochastic_rounding": True},
}
KOALA: Settings = {
    **ALL,
    "fixed noise": {"r": 2.0, "alpha_r": 0.5},
    "target": {"target": 0.01},
    "callable target": {"target": no_target},
    "maximize": {"maximize": True, "target": 100.0},
    "unguarded": {"skip_nonfinite": False, "weight_decay": 0.01},
}
METRIC: Settings = {
    "default": {},
    "tensor lr": ALL["tensor lr"],
    "weight decay": {"weight_decay": 0.01, "lr": 0.02, "skip_nonfinite": False},
    "maximize": {"maximize": True, "target": 100.0, "stochastic_rounding": True},
    "noise and averages": {"r": 2.0, "alpha_r": 0.5, "q": 0.01, "beta": 0.0, "beta2": 0.9, "eps": 1e-6},
    "unmeasured": {"measured": False},
}
NO_TARGET = {"maximize": True, "target": 0.0}
UNFIT = {"target": "low"}
KOALA_ERRORS = [(NO_TARGET, "target=0.0 with maximize=True"), (UNFIT, "target='low' is outside its range")]

INPUTS: dict[type[fallline.Optimizer], Settings] = {
    fallline.VanillaKOALA: {
        **KOALA,
        "variance": {"sigma": 0.1, "q": 0.1},
        "authors' weight decay": {"weight_decay": 0.01, "weight_decay_mode": "reference"},
    },
    fallline.MomentumKOALA: {
        **KOALA,
        "covariance": {"sw": 0.2, "sc": 0.05, "sv": 0.05, "a": 0.8, "qw": 0.02, "qv": 0.005},
        "paper": {"q_rule": "paper", "average_init": "zeros"},
        "fixed": {"q_rule": "fixed"},
    },
    fallline.KOALAPlusPlus: {**KOALA, "variance": {"sigma": 0.1, "q": 0.1}, "vanilla": {"symmetric": False}},
    fallline.MetricKOALA: {
        **METRIC,
        "identity": {"metric": "identity", "q": 0.01},
        "a callable": {"metric": torch.sign, "target": no_target},
    },
    fallline.OrthogonalKOALA: {**METRIC, "one metric": {"metric": "adam"}},
    fallline.ArTuRO: {
        **ALL,
        "maximize": {"maximize": True, "weight_decay": 0.01},
        "unguarded": {"skip_nonfinite": False, "reg_weight": 0.5, "prior_prec": 0.02, "nu": 2.0},
        "filter": {"var_init": 0.1, "filter_var_init": 1e-4, "measurement_noise": 2.0, "process_noise": 1e-3},
        "quadratic noise": {"process_noise_quad": 0.1, "curvature_init": 0.2, "curvature_floor": 0.01},
        "centred": {"intercept_init": "centred", "newton_iters": 2},
        "bisect": {"solver": "bisect"},
        "groups": {"scope": "group", "eta_min": 0.1},
        "tensors": {"scope": "tensor"},
        "second moment": {"curvature": "second-moment", "beta2": 0.99},
    },
    fallline.LODO: {
        **ALL,
        "maximize": {"maximize": True, "weight_decay": 0.01},
        "unguarded": {"skip_nonfinite": False, "meta_lr": 1e-4, "meta_betas": (0.8, 0.99)},
        "small": {"depth": 3, "block_size": 3, "beta": 0.5, "padding": "ceil"},
        "sgd": {"depth": 3, "meta_optimizer": "sgd"},
        "epsilon": {"depth": 3, "meta_eps": 1e-8, "meta_eps_mode": "torch", "second_moment": "block"},
        "buckets": {"depth": 3, "bucket_size": 20},
        "diagonal": {"preconditioner": "diagonal"},
        "global": {"preconditioner": "global"},
        "residual": {"preconditioner": "residual", "depth": 4},
        "no network": {"depth": 0},
    },
    fallline.CoolMomentum: {
        **ALL,
        "maximize": {"maximize": True, "weight_decay": 0.01},
        "guarded": {"skip_nonfinite": True, "rho_0": 0.9},
        "cooling": {"cool_steps": 20, "hold_steps": 5, "rho_0": 0.9},
        "linear": {"cool_steps": 20, "schedule": "linear", "rho_0": 0.9},
        "temperature": {"cool_steps": 20, "schedule": "exponential_temperature", "rho_0": 0.9},
        "callable": {"cool_steps": 20, "schedule": halve, "rho_0": 0.9},
        "decoupled": {"weight_decay": 0.01, "decoupled": True, "skip_nonfinite": True, "rho_0": 0.9},
    },
}
# Settings that are legal one by one and not together, beside those outside their range: see `error_inputs`.
ERRORS: dict[type[fallline.Optimizer], list[tuple[Settings, str]]] = {
    fallline.VanillaKOALA: KOALA_ERRORS,
    fallline.MomentumKOALA: [*KOALA_ERRORS, ({"sc": 0.2}, r"sc=0.2 is outside its range: .*sc² <= sw sv")],
    fallline.KOALAPlusPlus: KOALA_ERRORS,
    fallline.MetricKOALA: KOALA_ERRORS,
    fallline.OrthogonalKOALA: KOALA_ERRORS,
    fallline.ArTuRO: [
        ({"nu": 0.0, "reg_weight": 0.0}, "nu=0.0 is outside its range"),
        ({"newton_iters": 1.5}, "newton_iters=1.5 is outside its range: a whole number"),
        ({"solver": "bisect", "scope": "tensor"}, "scope='tensor' is unknown with solver='bisect'"),
        ({"curvature_floor": -10.0}, "curvature_floor=-10.0 is outside its range"),
    ],
    fallline.LODO: [
        ({"depth": 1.5}, "depth=1.5 is outside its range: a whole number"),
        ({"block_size": 2.5}, "block_size=2.5 is outside its range: a whole number"),
        ({"meta_betas": (0.9,)}, "meta_betas=.* is outside its range: two numbers"),
        ({"meta_betas": (0.9, 1.0)}, "meta_betas=.* is outside its range: two numbers"),
    ],
    fallline.CoolMomentum: [({"cool_steps": torch.ones(2)}, "cool_steps=.* is outside its range")],
}


def inputs(cls: type[fallline.Optimizer]) -> Any:
    """What torch calls with a device, and perhaps a dtype: inputs without parameters and without ``fused``."""

    def of_device(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        return [
            OptimizerInput(
                params=None,
                kwargs={k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()},
                desc=desc,
            )
            for desc, kwargs in INPUTS[cls].items()
        ]

    return of_device


def error_inputs(cls: type[fallline.Optimizer]) -> Any:
    """Torch's errors of all optimizers; each setting outside its range; what does not fit together; a step too soon."""

    def of_device(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
        common = get_error_inputs_for_all_optims(device, dtype)
        for error in common:
            if error.error_regex == "Tensor lr must be 1-element":  # here the range is named
                error.error_regex = r"lr=tensor\(.* is outside its range"
        wrong: list[tuple[Settings, str]] = list(ERRORS[cls])
        for name, interval in intervals(cls).items():
            low, high = interval[1:-1].split(", ")
            values = [float("nan"), "fast", None] if cls([torch.zeros(1)]).defaults[name] is not None else ["fast"]
            values += [float(low) - 1] if low != "-inf" else []
            values += [float(high) + 1] if high != "inf" else []
            wrong += [
                ({name: value}, rf"{name}=.* is outside its range: a number in \{interval[0]}") for value in values
            ]
        wrong += [({name: "nonsense"}, rf"{name}='nonsense' is unknown: one of") for name in choices(cls)]
        common += [
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=regex), error_type=ValueError, error_regex=regex
            )
            for kwargs, regex in wrong
        ]
        unknown = OptimizerInput(params=None, kwargs={"foreach": True}, desc="how to run is fused=True alone")
        common.append(ErrorOptimizerInput(unknown, error_type=TypeError, error_regex="unexpected keyword .*'foreach'"))
        if issubclass(cls, fallline.KOALA):
            common.append(
                ErrorOptimizerInput(
                    OptimizerInput(params=None, kwargs={}, desc="a step without the loss"),
                    error_on=OptimizerErrorEnum.STEP_ERROR,
                    error_type=RuntimeError,
                    error_regex="Four ways to give it",
                )
            )
        return common

    return of_device


optim_db: list[OptimizerInfo] = [
    OptimizerInfo(
        cls,
        optim_inputs_func=inputs(cls),
        optim_error_inputs_func=error_inputs(cls),
        scheduler_inputs=SCHEDULERS,
        supported_impls=("fused",),
        not_og_supported_flags=("maximize",),
        supports_multiple_devices=False,
        step_requires_closure=issubclass(cls, fallline.KOALA),  # or a loss: step() alone raises
        supports_fused_on=("cpu", "cuda"),
    )
    for cls in sorted(INPUTS, key=lambda cls: cls.__name__)
]
