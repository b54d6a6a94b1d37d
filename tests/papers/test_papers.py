"""The presets of the papers' training experiments: their settings, numbers and sizes; nothing here needs data."""

import pytest
import torch
from torch import nn

from fallline import CoolMomentum
from fallline.bench.contenders import get_contender
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import get_task
from fallline.papers.experiments import EXPERIMENTS, Design, get_experiment
from fallline.papers.experiments._experiment import trials
from fallline.papers.experiments.coolmomentum_cooling import MATCHED, MatchedSGD

PRESETS = [name for name in EXPERIMENTS if get_experiment(name).scaled]


def entry_of(preset, case_name, label):
    """An entry of a case at full scale, and the case."""
    case = next(case for case in get_experiment(preset).full if case.name == case_name)
    return next(entry for entry in case.entries if entry.label == label), case


def test_the_papers_of_the_issue_are_there():
    asked = {"koala-cifar", "koala-lm", "koala-ablation-init", "arturo-fmnist", "arturo-cifar", "lodo-mnist"}
    assert asked | {"coolmomentum-cifar", "coolmomentum-imagenet", "coolmomentum-cooling"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_and_every_trial_is_one_that_its_optimizer_takes(name):
    preset = get_experiment(name)
    for scale in ("full", "cpu"):
        for tuning in preset.tunings(Design(name, scale=scale, trials=5)) if getattr(preset, scale) else ():
            horizon = get_task(tuning.case.task).horizon
            for run in tuning.candidates:
                parameters = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]
                optimizer = get_contender(run.optimizer).make(parameters, run.settings, horizon)
                group = optimizer.param_groups[0]
                for setting, value in run.settings.items():
                    if setting in group:
                        assert group[setting] == value


@pytest.mark.parametrize("name", PRESETS)
def test_a_setting_names_its_source(name):
    preset = get_experiment(name)
    assert all(entry.source for case in (*preset.full, *preset.cpu) for entry in case.entries)
    assert all(case.source for case in preset.full)
    assert all((preset.deviations, preset.gpu_time, preset.cpu_time))


@pytest.mark.parametrize(
    ("preset", "case", "label", "number"),
    [
        ("koala-cifar", "CIFAR-100, ResNet-18, 100 epochs", "KOALA-M", 23.38),
        ("koala-cifar", "CIFAR-100, ResNet-18, 100 epochs", "KOALA-V", 24.17),
        ("koala-cifar", "CIFAR-100, ResNet-50, 100 epochs", "KOALA++", 22.0),
        ("koala-cifar", "CIFAR-100, ResNet-50, 200 epochs", "Adam", 24.44),
        ("koala-cifar", "CIFAR-10, W-ResNet-50-2, 200 epochs", "SGD", 7.60),
        ("koala-cifar", "CIFAR-10, ResNet-50, 100 epochs", "KOALA-M", 7.29),
        ("koala-ablation-init", "CIFAR-100, ResNet-18, 100 epochs, orthogonal", "SGD", 26.83),
        ("koala-ablation-init", "CIFAR-100, ResNet-18, 100 epochs, Kaiming, uniform", "KOALA-M", 23.35),
        ("koala-lm", "WikiText-2, LSTM 2×1500", "KOALA-M", 89.64),
        ("koala-lm", "WikiText-2, transformer of 2 layers and 2 heads", "SGD", 169.04),
        ("koala-lm", "Penn Treebank, LSTM 2×200", "Adam", 123.6),
        ("coolmomentum-cifar", "CIFAR-10, ResNet-20, 200 epochs", "CoolMomentum", 91.7),
        ("coolmomentum-imagenet", "ImageNet, EfficientNet-B0, 350 epochs", "RMSprop", 77.2),
        ("coolmomentum-cooling", "CIFAR-10, ResNet-34, 100 epochs, cooling over 100", "linear", 95.3),
        ("coolmomentum-cooling", "CIFAR-10, ResNet-34, 100 epochs, cooling over 50", "exponential", 92.9),
    ],
)
def test_published_numbers_stand_where_the_papers_have_them(preset, case, label, number):
    assert entry_of(preset, case, label)[1].published[label] == number


@pytest.mark.parametrize(
    ("preset", "case", "label", "factor", "epochs"),
    [
        ("koala-cifar", "CIFAR-10, ResNet-18, 100 epochs", "SGD", 0.1, (30, 60, 90)),
        ("koala-cifar", "CIFAR-10, ResNet-18, 200 epochs", "KOALA-M", 0.1, (150,)),
        ("koala-cifar", "CIFAR-100, ResNet-18, 100 epochs", "KOALA-V", 0.2, (30, 60, 90)),
        ("koala-cifar", "CIFAR-100, ResNet-18, 200 epochs", "Adam", 0.2, (60, 120, 160)),
        ("koala-ablation-init", "CIFAR-100, ResNet-18, 100 epochs, orthogonal", "SGD", 0.2, (30, 60, 90)),
        ("arturo-fmnist", "Fashion-MNIST, CNN, 120 epochs", "arTuRO", 0.006, (60, 90)),
        ("arturo-cifar", "CIFAR-100, ResNet-34, 160 epochs", "AdamW", 0.1, (80, 120)),
        ("coolmomentum-cifar", "CIFAR-10, ResNet-20, 200 epochs", "SGD", 0.1, (80, 120, 160)),
    ],
)
def test_rates_drop_after_the_epochs_of_the_paper(preset, case, label, factor, epochs):
    entry, found = entry_of(preset, case, label)
    drops, shares = get_contender(entry.optimizer).drops
    task = get_task(found.task)
    assert drops == factor
    assert tuple(round(share * task.steps) for share in shares) == tuple(epoch * task.epoch for epoch in epochs)


@pytest.mark.parametrize(
    ("preset", "case", "beta"),
    [
        ("arturo-fmnist", "Fashion-MNIST, ResNet-18, 120 epochs", 0.043),
        ("arturo-cifar", "CIFAR-100, CNN, 160 epochs", 0.186),
        ("arturo-cifar", "CIFAR-10, ResNet-34, 160 epochs", 0.551),
        ("arturo-cifar", "CIFAR-100, ResNet-34, 160 epochs", 0.563),
    ],
)
def test_arturos_precision_averages_as_derived_for_each_published_setting(preset, case, beta):
    settings = entry_of(preset, case, "arTuRO")[0].settings
    assert settings["reg_weight"] / (settings["reg_weight"] + settings["nu"]) == pytest.approx(beta, abs=5e-4)


def test_a_method_keeps_the_setting_of_one_initialisation_for_all_others():
    preset = get_experiment("koala-ablation-init")
    design = Design(preset.name, scale="cpu", seeds=1)
    tried = trials(preset.tunings(design))
    assert {run.task for run in tried}.isdisjoint(case.task for case in preset.cpu)
    assert len(tried) == len(preset.cpu[0].entries) * preset.trials


def test_imagenet_has_no_version_for_two_cores_and_says_so():
    with pytest.raises(ValueError, match="--scale full"):
        get_experiment("coolmomentum-imagenet").cases(Design("coolmomentum-imagenet", scale="cpu"))


def test_all_presets_together_are_meant_for_ninety_minutes_on_two_cores():
    presets = [preset for preset in map(get_experiment, PRESETS) if preset.cpu]
    seconds = sum(preset.estimate(Design(preset.name, scale="cpu", seeds=preset.seeds)) for preset in presets)
    assert seconds / 2 < 90 * 60


# --- cooling, and what matches it ---


def test_what_cools_and_what_matches_it_end_with_the_run_or_halfway():
    preset = get_experiment("coolmomentum-cooling")
    for case, share in ((preset.full[0], 1), (preset.full[1], 0.5), (preset.cpu[0], 1)):
        steps = {entry.settings["cool_steps"] for entry in case.entries if "cool_steps" in entry.settings}
        assert steps == {get_task(case.task).steps * share}


def test_every_trial_of_cooling_has_its_match_among_those_of_sgd():
    preset = get_experiment("coolmomentum-cooling")
    design = Design(preset.name, scale="cpu")
    found = {
        entry.label: [
            (one["lr"], one["rho_0"], one["schedule"]) for one in entry.candidates(preset.tries(design), seed=0)
        ]
        for entry in preset.cpu[0].entries
        if entry.label in ("linear", "SGD as linear")
    }
    assert found["linear"] == found["SGD as linear"]
    assert len(set(found["linear"])) == preset.trials


@pytest.mark.parametrize("schedule", ["exponential", "exponential_temperature", "linear"])
def test_without_momentum_a_matched_step_is_coolmomentums_effective_rate_times_the_gradient(schedule):
    cooling = {"lr": 0.02, "rho_0": 0.95, "cool_steps": 12, "schedule": schedule}
    cold, point = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    cool = CoolMomentum([cold], **cooling)
    matched = MatchedSGD([point], momentum=0.0, **cooling)
    for _ in range(15):
        before, wanted = point.item(), cool.effective_lr.item()
        for parameter, optimizer in ((cold, cool), (point, matched)):
            parameter.grad = torch.full_like(parameter, 3.0)
            optimizer.step()
        assert before - point.item() == pytest.approx(3 * wanted, rel=1e-9)
    assert matched.param_groups[0]["lr"] == 0.02
    assert wanted == 0.01  # it has cooled down to lr / 2


def test_with_momentum_a_steady_gradient_drives_both_at_the_same_speed():
    cooling = {"lr": 0.02, "rho_0": 0.95, "cool_steps": 1e12}
    speeds = []
    for optimizer_class in (CoolMomentum, MatchedSGD):
        point = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = optimizer_class([point], **cooling)
        way = [0.0]
        for _ in range(600):
            point.grad = torch.ones_like(point)
            optimizer.step()
            way.append(point.item())
        speeds.append(way[-1] - way[-2])
    assert speeds[0] == pytest.approx(speeds[1], rel=1e-6)
    assert speeds[0] == pytest.approx(-0.02 * 1.95 / (2 * 0.05), rel=1e-6)


def test_a_matched_run_goes_on_from_its_state_to_the_very_same_numbers():
    def made():
        point = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        return point, MatchedSGD([point], lr=0.01, cool_steps=20, schedule="linear", weight_decay=0.1)

    def go(point, optimizer, steps):
        for _ in range(steps):
            point.grad = 2 * point.detach()
            optimizer.step()

    whole, first = made(), made()
    go(*whole, 16)
    go(*first, 7)
    second = made()
    second[0].data.copy_(first[0])
    second[1].load_state_dict(first[1].state_dict())
    go(*second, 9)
    assert torch.equal(whole[0], second[0])


def test_the_training_loop_takes_a_matched_run_by_its_name():
    outcome = train(Run("digits", MATCHED, {"lr": 0.01, "rho_0": 0.9, "cool_steps": 480}, seed=0))
    losses = [loss for loss in outcome.curve["validation loss"] if loss is not None]
    assert outcome.status == "finished"
    assert losses[-1] < 0.5 * losses[0]
