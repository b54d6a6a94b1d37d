"""The examples: each ends where a plain loop over the same batches ends, and is evaluated and saved where it says."""

import re
import runpy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bits import assert_bits
from scripts import script
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from fallline import MomentumKOALA
from fallline.koala.base import KOALA

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEEDS = {
    "accelerate_loop": "accelerate",
    "fabric_loop": "lightning",
    "lightning_trainer": "lightning",
    "transformers_trainer": "transformers",
}
LOOPS = ["plain", "accumulation", "closure", "grad_scaler", "accelerate_loop", "fabric_loop"]
NAMES = [*LOOPS, "lightning_trainer", "transformers_trainer", "ddp", "two_points"]

Batch = tuple[Tensor, Tensor]
Losses = Callable[[nn.Module, Any], Tensor]
Measure = Callable[[nn.Module], Tensor]

pytestmark = [  # of the trainers themselves, and of what they import
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings(
        "ignore:(The number of training batches|Checkpoint directory|The dirpath|You defined a .validation_step)"
    ),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def load(name: str) -> ModuleType:
    """An example as a module, without its main block; skips where a package is missing."""
    pytest.importorskip("sklearn")
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return script(f"examples/{name}.py")


# -- the plain loop ---------------------------------------------------------------------------------------------


def digits() -> Batch:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def entropies(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def half_entropy(model: nn.Module, batch: Batch) -> Tensor:
    with torch.autocast("cpu", torch.float16):
        return entropy(model, batch)


def plain_loop(
    model: nn.Module,
    batches: Iterable[Any],
    accumulate: int,
    losses: Losses = entropy,
    scale: float = 1.0,
    schedule: Callable[[int], float] = lambda step: 1.0,
) -> Iterator[MomentumKOALA]:
    """What an example must equal: backward, then step(loss=...); yields after each step.

    Gradients are multiplied by ``scale`` and divided again: in float16 it decides what underflows. As GradScaler
    does, one that is too large is halved, and the step left out.
    """
    optimizer = MomentumKOALA(model.parameters())
    scheduler = LambdaLR(optimizer, schedule)
    parts: list[Tensor] = []
    for batch in batches:
        part = losses(model, batch)
        (part.mean() * (scale / accumulate)).backward()
        parts.append(part.detach().reshape(-1))
        if len(parts) == accumulate:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            torch._foreach_div_(gradients, scale)
            if all(g.isfinite().all() for g in gradients):
                optimizer.step(loss=torch.cat(parts))
                scheduler.step()
            else:
                scale /= 2
            optimizer.zero_grad()
            parts = []
            yield optimizer


def finish(steps: Iterator[MomentumKOALA]) -> MomentumKOALA:
    """All steps; the optimizer after the last."""
    *_, last = steps
    return last


def slices(size: int, epochs: int = 3) -> list[Batch]:
    """The batches of the plain loops, drawn from the stream that has made the network."""
    x, y = digits()
    return [(x[rows], y[rows]) for _ in range(epochs) for rows in torch.randperm(1536).split(size)]


def loaded(size: int, epochs: int = 3) -> list[Batch]:
    """The same of the loops that have a DataLoader."""
    x, y = digits()
    loader = DataLoader(TensorDataset(x[:1536], y[:1536]), size, shuffle=True)
    return [(inputs, targets) for _ in range(epochs) for inputs, targets in loader]


def close(model: nn.Module, twin: nn.Module, atol: float = 0.0) -> None:
    """Equal parameters: to the bit, or to ``atol`` where sums are taken in another order."""
    for mine, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0.0, atol=atol)


def evaluated_at_the_filtered_point(loss: float, twin: nn.Module, optimizer: KOALA, measure: Measure) -> None:
    """The loss is that of the filtered point of the plain loop's twin, and not that of the predicted one."""
    twin.eval()
    with torch.no_grad():
        predicted = measure(twin).item()
        with optimizer.posterior():
            assert loss == pytest.approx(measure(twin).item(), rel=1e-6)
    assert loss != pytest.approx(predicted, rel=1e-5)


# -- loops of one's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_ends_where_the_plain_loop_ends(name: str, accumulate: int) -> None:
    example = load(name)
    model, loss = example.train(accumulate)

    twin = net()
    batches = (loaded if name in NEEDS else slices)(64 // accumulate)
    if name == "closure":  # it takes its micro-batches from a batch: the same examples
        assert len(batches) == 72 * accumulate
    losses = {"plain": entropies, "grad_scaler": half_entropy}.get(name, entropy)
    optimizer = finish(plain_loop(twin, batches, accumulate, losses, scale=2.0**16 if name == "grad_scaler" else 1.0))
    x, y = digits()
    evaluated_at_the_filtered_point(loss, twin, optimizer, lambda model: entropy(model, (x[1536:], y[1536:])))
    with optimizer.posterior():
        close(model, twin)


def test_steps_that_the_scaler_skips_are_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("grad_scaler")
    scalers = []

    class Bold(torch.amp.GradScaler):
        def __init__(self, device: str) -> None:
            super().__init__(device, init_scale=2.0**40)
            scalers.append(self)

    monkeypatch.setattr(torch.amp, "GradScaler", Bold)
    model, _ = example.train(2)
    assert 2.0**4 <= scalers[0].get_scale() <= 2.0**36

    twin = net()
    optimizer = finish(plain_loop(twin, slices(32), 2, half_entropy, scale=2.0**40))
    with optimizer.posterior():
        close(model, twin)


# -- Lightning --------------------------------------------------------------------------------------------------


def quiet(folder: Path) -> dict[str, Any]:
    return dict(default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False)


def raw(model: nn.Module, batch: Batch) -> Tensor:
    return entropy(model, (batch[0].float() / 16, batch[1]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_ends_where_the_plain_loop_ends_and_saves_the_filtered_point(accumulate: int, tmp_path: Path) -> None:
    example = load("lightning_trainer")
    from lightning import Callback

    class Recorder(Callback):
        def __init__(self) -> None:
            self.batches: list[Batch] = []
            self.tests: Batch | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, index: int) -> None:
            self.batches.append(batch)

        def on_validation_batch_start(self, trainer: Any, module: Any, batch: Batch, index: int) -> None:
            self.tests = batch

    recorder = Recorder()
    torch.manual_seed(0)
    split = torch.get_rng_state()
    model, loss = example.train(accumulate, callbacks=[recorder], **quiet(tmp_path))

    torch.set_rng_state(split)
    example.random_split(range(1797), [1536, 261])
    twin = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = finish(plain_loop(twin, recorder.batches, accumulate, raw))
    assert len(recorder.batches) == 72 * accumulate
    evaluated_at_the_filtered_point(loss, twin, optimizer, lambda model: raw(model, recorder.tests))

    saved = torch.load(model.trainer.checkpoint_callback.best_model_path, weights_only=False)
    with optimizer.posterior():
        close(model.net, twin)
        assert_bits(list(saved["state_dict"].values()), list(twin.state_dict().values()))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Eight batches in a fixed order, so that a run that resumes finds the ones that are left; and a test set."""
    x, y = digits()
    raw_x = (x * 16).double()
    return (
        DataLoader(TensorDataset(raw_x[:512], y[:512]), 64),
        DataLoader(TensorDataset(raw_x[1536:], y[1536:]), 261),
    )


@pytest.mark.parametrize("when", ["after an evaluation", "without one"])
def test_lightning_resumes_to_the_same_bits(when: str, tmp_path: Path) -> None:
    example = load("lightning_trainer")
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    Filtered = snippet("lightning")["Filtered"]

    def fit(folder: str, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        model = example.Digits()
        callbacks = [ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1)]
        batches, tests = loaders()
        if when == "without one":
            saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=8, save_top_k=-1)
            callbacks, tests = [Filtered(8), saving], None
        trainer = Trainer(max_epochs=2, callbacks=callbacks, **quiet(tmp_path), accelerator="cpu")
        trainer.fit(model, batches, tests, **options)
        trainer.optimizers[0].train()
        return model.net

    never_stopped = fit("once")
    saved = tmp_path / "once" / "step=8.ckpt"

    torch.manual_seed(0)
    twin = example.Digits().net
    optimizer = finish(plain_loop(twin, loaders()[0], 1, raw))
    with optimizer.posterior():
        weights = torch.load(saved, weights_only=False)["state_dict"]
        assert_bits(list(weights.values()), list(twin.state_dict().values()))

    close(fit("again", ckpt_path=saved), never_stopped)


# -- transformers -----------------------------------------------------------------------------------------------


def letters(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each letter given those before it, the mean over a batch."""
    scores = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def own(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same as the model computes it, so that it has the same bits."""
    each = batch["labels"][:, 1:].numel()
    loss: Tensor = model(**batch, num_items_in_batch=torch.tensor(2 * each)).loss * 2
    with torch.no_grad():
        torch.testing.assert_close(loss, letters(model, batch))
    return loss


def run(example: ModuleType, folder: Path, accumulate: int, more: dict[str, Any], **options: Any) -> Any:
    """The example with other arguments; what it was trained on and began with is recorded."""
    original, arguments = example.Trainer, example.TrainingArguments
    also = more.pop("callbacks", None)

    class Recorder(original):  # type: ignore[misc, valid-type]
        def __init__(self, model: nn.Module, *args: Any, **kw: Any) -> None:
            super().__init__(model, *args, callbacks=also, **kw)
            record.start = {name: p.clone() for name, p in model.state_dict().items()}
            record.trainer = self

        def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
            record.batches.append(inputs)
            return super().training_step(model, inputs, *args)

    record = type("Record", (), {"batches": [], "start": {}, "trainer": None, "model": None, "loss": 0.0})()
    example.Trainer = Recorder
    example.TrainingArguments = lambda *args, **kw: arguments(*args, **{**kw, "disable_tqdm": True, **more})
    try:
        record.model, record.loss = example.train(accumulate, str(folder), **options)
    finally:
        example.Trainer, example.TrainingArguments = original, arguments
    return record


def twin_of(example: ModuleType, record: Any) -> nn.Module:
    twin: nn.Module = type(record.model)(record.model.config)
    twin.load_state_dict(record.start)
    return twin.train()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_end_where_the_plain_loop_ends_and_save_the_filtered_point(
    accumulate: int, tmp_path: Path
) -> None:
    example = load("transformers_trainer")
    record = run(example, tmp_path, accumulate, {})

    twin = twin_of(example, record)
    pieces = torch.stack([piece["labels"] for piece in record.trainer.eval_dataset])
    tests = {"input_ids": pieces, "labels": pieces}
    evaluated = {log["step"]: log["eval_loss"] for log in record.trainer.state.log_history if "eval_loss" in log}
    assert record.loss == evaluated[60]
    steps = plain_loop(twin, record.batches, accumulate, own, schedule=lambda step: (60 - step) / 60)
    for step, optimizer in enumerate(steps, 1):
        if step % 20 == 0:
            evaluated_at_the_filtered_point(evaluated.pop(step), twin, optimizer, lambda model: letters(model, tests))
            weights = type(record.model).from_pretrained(tmp_path / f"checkpoint-{step}")
            with optimizer.posterior():
                close(weights, twin)
    assert not evaluated
    with optimizer.posterior():
        close(record.model, twin)


@pytest.mark.parametrize("when", ["after an evaluation", "without one"])
def test_transformers_resume_to_the_same_bits(when: str, tmp_path: Path) -> None:
    example = load("transformers_trainer")
    more: dict[str, Any] = {"max_steps": 40}
    if when == "without one":
        Filtered = snippet("transformers")["Filtered"]
        more |= {"eval_strategy": "no", "callbacks": [Filtered()]}
    once = run(example, tmp_path / "once", 2, {**more})
    again = run(example, tmp_path / "again", 2, {**more}, resume_from_checkpoint=str(tmp_path / "once/checkpoint-20"))
    close(again.model, once.model)

    twin = twin_of(example, once)
    optimizer = finish(plain_loop(twin, once.batches[:40], 2, own, schedule=lambda step: (40 - step) / 40))
    weights = type(once.model).from_pretrained(tmp_path / "once/checkpoint-20")
    with optimizer.posterior():
        close(weights, twin)
    assert len(again.batches) == 40


# -- several processes ------------------------------------------------------------------------------------------


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    example = load("ddp")
    results = [example.train(accumulate) for accumulate in (1, 2)]
    torch.save([(model.state_dict(), loss) for model, loss in results], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_end_where_one_ends(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    torch.multiprocessing.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_bits(*ranks)
    x, y = digits()
    for accumulate, (weights, loss) in zip((1, 2), ranks[0], strict=True):
        twin = net()
        model = net()
        model.load_state_dict(weights)
        optimizer = finish(plain_loop(twin, slices(32 // accumulate), 2 * accumulate))
        evaluated_at_the_filtered_point(loss, twin, optimizer, lambda model: entropy(model, (x[1536:], y[1536:])))
        with optimizer.posterior():
            close(model, twin, 2e-6)


# -- what all have in common ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accelerate_loop", "fabric_loop", "transformers_trainer"])
def test_without_attach_the_four_ways_are_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example = load(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MomentumKOALA, "attach", lambda *args: None)
    with pytest.raises(RuntimeError, match="Four ways to give it"):
        example.train(2)


def test_lightning_without_attach_gives_the_last_micro_batch_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It passes a closure: right without accumulation, and otherwise the reason for attach."""
    example = load("lightning_trainer")
    ends = {}
    for accumulate in (1, 2):
        for attached in (True, False):
            if not attached:
                monkeypatch.setattr(MomentumKOALA, "attach", lambda *args: None)
            torch.manual_seed(0)
            model, _ = example.train(accumulate, limit_train_batches=8 * accumulate, **quiet(tmp_path))
            ends[accumulate, attached] = model.trainer.optimizers[0].measurement_noise.item()
            monkeypatch.undo()
    assert ends[1, True] == pytest.approx(ends[1, False], rel=1e-6)
    assert ends[2, False] < 0.5 * ends[2, True]


def test_accelerate_with_a_scaler_ends_where_a_step_without_one_ends() -> None:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)  # the state that the wrapper reads
    batch = slices(64, 1)[0]
    model, twin, scaler = net(), net(), torch.amp.GradScaler("cpu")
    optimizer, plain = MomentumKOALA(model.parameters()), MomentumKOALA(twin.parameters())
    wrapped = AcceleratedOptimizer(optimizer, scaler=scaler)
    for _ in range(3):
        scaler.scale(wrapped.optimizer.observe(entropy(model, batch))).backward()
        loss = entropy(twin, batch)
        loss.backward()
        wrapped.step()
        plain.step(loss=loss)
        wrapped.zero_grad()
        plain.zero_grad()
    close(model, twin)


def test_lightning_in_float16_sees_the_loss_and_not_its_scaled_value(tmp_path: Path) -> None:
    example = load("lightning_trainer")
    from lightning import Trainer
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = Trainer(max_epochs=1, plugins=plugin, accelerator="cpu", **quiet(tmp_path))
    torch.manual_seed(0)
    trainer.fit(example.Digits(), *loaders())
    torch.manual_seed(0)
    plain = finish(plain_loop(example.Digits().net, loaders()[0], 1, raw))
    seen = trainer.optimizers[0].measurement_noise.item()
    assert seen == pytest.approx(plain.measurement_noise.item(), rel=1e-2)  # in float16


@pytest.mark.parametrize("name", ["accelerate", "lightning"])
def test_a_wrapped_optimizer_takes_no_loss_and_the_one_inside_does(name: str) -> None:
    pytest.importorskip(name)
    model, batch = net(), slices(64, 1)[0]
    optimizer = MomentumKOALA(model.parameters())
    if name == "accelerate":
        from accelerate import Accelerator

        model, wrapped = Accelerator(cpu=True).prepare(model, optimizer)
    else:
        from lightning import Fabric

        model, wrapped = Fabric(accelerator="cpu").setup(model, optimizer)
    entropy(model, batch).backward()
    with pytest.raises(TypeError, match="loss"):
        wrapped.step(loss=1.0)
    with pytest.raises(RuntimeError, match="Four ways"):
        wrapped.step()
    wrapped.zero_grad()
    wrapped.optimizer.observe(entropy(model, batch)).backward()
    before = [p.clone() for p in model.parameters()]
    wrapped.step()
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert len(source.splitlines()) < 40
    assert source.startswith('"""')
    assert f"import {name}" not in source
    assert f"from {name}" not in source


def test_every_example_is_listed_here() -> None:
    tutorials = {"fine_tune", "letters", "new_optimizer"}  # run by test_tutorials.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES, *tutorials}


@pytest.mark.parametrize("name", [*LOOPS, "lightning_trainer", "transformers_trainer"])
def test_an_example_runs_as_a_program(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(name)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "test loss " in capsys.readouterr().out


def test_the_two_points_differ_and_the_filtered_one_is_the_posterior() -> None:
    example = load("two_points")
    early, late = example.train(8, 0, (5, 20))
    assert early.shape == (2, 2)
    assert not torch.equal(early[0], early[1])
    assert late[1, 0] < early[1, 0]


# -- the page ---------------------------------------------------------------------------------------------------


def blocks() -> dict[str, str]:
    """The code of docs/trainers.md, by the name in the comment above it."""
    page = (ROOT / "docs" / "trainers.md").read_text()
    return dict(re.findall(r"<!-- (\S+) -->\s+```python\n(.*?)```", page, re.DOTALL))


def snippet(name: str) -> dict[str, Any]:
    """What a block of the page defines."""
    names: dict[str, Any] = {}
    exec(compile(blocks()[f"filtered_{name}.py"], "docs/trainers.md", "exec"), names)
    return names


def test_the_page_quotes_the_examples() -> None:
    quoted = {name: code for name, code in blocks().items() if name.startswith("examples/")}
    assert len(quoted) >= 8
    for name, code in quoted.items():
        lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
        assert [line for line in map(str.strip, code.splitlines()) if line not in [*lines, "...", ""]] == []
