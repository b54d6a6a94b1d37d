"""The tasks on real data: names with options, horizons, batches, crops, splits, and the state that an LSTM carries."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.contenders import get_contender
from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.loop import Gradients, train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import REAL, TASKS, get_task, images, language
from fallline.bench.tasks.autoencoder import Autoencoder
from fallline.bench.tasks.autoregression import halved
from fallline.bench.tasks.data import MissingData
from fallline.bench.tasks.imagenet import ImageNet
from fallline.bench.tasks.images import PAD, Images, moved
from fallline.bench.tasks.language import Carried, Language

needs_data = pytest.mark.skipif("FALLLINE_DATA" not in os.environ, reason="FALLLINE_DATA names no folder with data")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A machine without data."""
    monkeypatch.setenv("FALLLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FALLLINE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", sorted({*TASKS, *REAL}))
def test_every_task_is_made_and_described_without_its_data(name, no_data):
    task = get_task(name)
    assert task.name == name
    assert task.steps >= task.evaluations >= 1
    assert task.epoch is None or 0 < task.epoch <= task.examples // task.batch_size
    assert len(task.summary) > 20


def test_options_set_the_horizon_and_stay_in_the_name():
    task = get_task("cifar10-resnet8@epochs=2,batch=64,evaluations=5,validation=2000,width=8")
    assert (task.examples, task.batch_size, task.epoch, task.evaluations) == (48_000, 64, 750, 5)
    assert task.steps == 1500
    assert task.name.endswith("width=8")
    assert sum(p.numel() for p in task.model().parameters()) < sum(
        p.numel() for p in get_task("cifar10-resnet8").model().parameters()
    )
    assert get_task("cifar10-resnet8").steps == 10 * (45_000 // 128)  # the one without options is what it was
    assert get_task("digits@epochs=0.5").steps == 8
    assert get_task("bowl@steps=7").steps == 7
    assert get_task("digits@batch=32").steps == 30 * 33  # another batch leaves the number of epochs
    assert get_task("cifar10-resnet8@steps=3").evaluations == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits@epoch=2", "did you mean epochs?"),
        ("digits@epochs", "options are written as in"),
        ("digits@epochs=2,epochs=3", "options are written as in"),
        ("digits@epochs=x", "epochs is a number"),
        ("digits@epochs=-1", "epochs must be positive"),
        ("digits@epochs=1,steps=3", "not in both"),
        ("bowl@epochs=1", "has no epochs"),
        ("bowl@batch=3", "fixed"),
        ("digits@batch=5000", "1,077 examples to train on, fewer than a batch"),
        ("cifar10-resnet8@widht=8", "did you mean width?"),
        ("cifar10-resnet18@width=8", "takes no option width"),
        ("cifar10-resnet8@validation=50000", "validation=50000 of them?"),
        ("cifar10-resnet8@init=random", "xavier-normal"),
        ("cifar10-resnet19", "did you mean"),
        ("mnist-autoregression@size=7", "size is 28 or 14"),
    ],
)
def test_a_mistaken_name_is_told_in_words(name, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        get_task(name)


def test_absent_data_are_told_with_the_command_that_gets_them(no_data):
    with pytest.raises(MissingData, match="fallline data get cifar-10"):
        list(get_task("cifar10-resnet8").data())
    with pytest.raises(MissingData, match="fallline data get penn-treebank"):
        list(get_task("ptb-lstm").data())


@pytest.mark.parametrize("name", ["cifar10-resnet8", "mnist-autoregression", "ptb-lstm", "digits"])
def test_the_shares_of_two_processes_make_up_the_batches(name):
    task = get_task(name)
    whole, first, second = (task.shares(generator(3, "order"), rank, ranks) for rank, ranks in ((0, 1), (0, 2), (1, 2)))

    def tensors(batch: object) -> list[Tensor]:
        return list(batch) if isinstance(batch, tuple) else [batch]  # type: ignore[list-item]

    for _ in range(3):
        for all_of_it, a, b in zip(*map(tensors, (next(whole), next(first), next(second))), strict=True):
            assert torch.equal(all_of_it, torch.cat([a, b]))


def test_a_batch_that_cannot_be_shared_equally_is_an_error():
    with pytest.raises(ValueError, match="64 examples cannot be cut into 3"):
        next(get_task("digits").shares(generator(0, "order"), 0, 3))


def test_an_epoch_of_images_sees_each_once_and_the_next_in_another_order():
    task = get_task("cifar10-cnn")
    batches = task.batches(generator(0, "order"))
    first, second = (torch.cat([next(batches) for _ in range(task.epoch)]) for _ in range(2))
    assert len(first[:, 0].unique()) == task.epoch * task.batch_size
    assert not torch.equal(first[:, 0], second[:, 0])
    assert first[:, 1:3].unique().tolist() == list(range(2 * PAD + 1))
    assert 0.48 < first[:, 3].double().mean() < 0.52


def test_a_crop_is_the_slice_of_the_padded_image_and_a_flip_its_mirror():
    pixels = torch.randint(1, 256, (5, 3, 8, 6), dtype=torch.uint8)
    down, right = torch.tensor([0, 4, 8, 3, 7]), torch.tensor([8, 4, 0, 5, 1])
    flip = torch.tensor([0, 0, 1, 1, 0])
    found = moved(pixels, down, right, flip)
    for index in range(5):
        border = torch.zeros(3, 8 + 2 * PAD, 6 + 2 * PAD, dtype=torch.uint8)
        border[:, PAD:-PAD, PAD:-PAD] = pixels[index]
        crop = border[:, down[index] :, right[index] :][:, :8, :6]
        assert torch.equal(found[index], crop.flip(2) if flip[index] else crop)
    assert torch.equal(found[1], pixels[1])


def tiny(monkeypatch: pytest.MonkeyPatch, **options: int) -> Images:
    """CIFAR's task on forty images."""
    drawn = torch.Generator().manual_seed(0)
    train = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=drawn), torch.arange(40) % 10
    test = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=drawn), torch.arange(7)
    known = SimpleNamespace(train=train, test=test, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    monkeypatch.setattr(images, "load_images", lambda name: known)
    source = images.Source("cifar-10", "tiny", 40, (3, 32, 32), 10, augmented=True)
    monkeypatch.setitem(images.SOURCES, "cifar10", source)
    return Images("cifar10-resnet8", validation=10, width=4, **options)


def test_what_is_held_out_is_not_trained_on(monkeypatch):
    task = tiny(monkeypatch)
    splits = task._on(torch.device("cpu"))
    train, validation = ({image.numpy().tobytes() for image in splits[name][0]} for name in ("train", "validation"))
    assert (len(train), len(validation), train & validation) == (30, 10, set())


def test_images_are_measured_as_by_hand(monkeypatch):
    task = tiny(monkeypatch)
    model = task.model().eval()
    pixels, labels = task._on(torch.device("cpu"))["test"]
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        logits = model((pixels / 255 - mean) / std)
        found = task.evaluate(model, "test")
    assert found["loss"] == pytest.approx(-logits.log_softmax(1)[range(7), labels].mean().item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_an_autoencoder_s_loss_is_the_mean_cross_entropy_of_its_pixels(monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=drawn), torch.arange(40) % 10
    known = SimpleNamespace(train=(pixels, labels), test=(pixels[:7], labels[:7]), mean=(0.5,), std=(0.2,))
    monkeypatch.setattr(images, "load_images", lambda name: known)
    monkeypatch.setitem(images.SOURCES, "mnist", images.Source("mnist", "tiny", 40, (1, 28, 28), 10, augmented=False))
    task = Autoencoder("mnist-autoencoder", validation=10)
    model = task.model()
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.zero_()
    losses = task.losses(model, next(task.resized(batch_size=6).batches(generator(0, "order"))))
    torch.testing.assert_close(losses, torch.full((6,), math.log(2)))  # of a logit 0, whatever the pixel
    bias = torch.randn(784, generator=drawn)
    with torch.no_grad():
        model[-1].bias.copy_(bias)
        found = task.evaluate(model, "test")["loss"]
    share, told = pixels[:7].flatten(1).double() / 255, bias.double().sigmoid()
    assert found == pytest.approx(-(share * told.log() + (1 - share) * (1 - told).log()).mean().item(), rel=1e-5)


class Counting(nn.Module):
    """Its state is the sum of what it has read; its logits tell the state."""

    def forward(self, tokens: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        before = torch.zeros(1, len(tokens), 1) if state is None else state[0]
        after = before + tokens.sum(1).view(1, -1, 1)
        return before[0].unsqueeze(1).expand(-1, tokens.shape[1], 3), (after,)


def test_a_recurrent_network_goes_on_where_the_last_batch_ended_and_starts_afresh_where_told():
    model = Carried(Counting())
    one, zero = torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    tokens = torch.tensor([[1, 2], [3, 4]])
    model(tokens, one)
    assert model(tokens, zero)[:, 0, 0].tolist() == [3, 7]
    assert model(tokens, torch.tensor([1, 0]))[:, 0, 0].tolist() == [0, 14]
    again = Carried(Counting())
    again.load_state_dict(model.state_dict())
    assert again(tokens, zero)[:, 0, 0].tolist() == model(tokens, zero)[:, 0, 0].tolist() == [3, 21]


def small_text(monkeypatch: pytest.MonkeyPatch) -> Language:
    """Penn Treebank's task on numbers that count upwards."""
    words = {"train": torch.arange(8000) % 50, "validation": torch.arange(900) % 50, "test": torch.arange(400) % 50}
    corpus = SimpleNamespace(**words, vocabulary=tuple(map(str, range(50))))
    monkeypatch.setattr(language, "load_text", lambda name: corpus)
    monkeypatch.setitem(language.TEXTS, "ptb", ("penn-treebank", "tiny", 50, 8000))
    return Language("ptb-lstm")


def test_text_is_read_in_order_and_evaluation_leaves_the_state_alone(monkeypatch):
    task = small_text(monkeypatch)
    model = task.model()
    batches = task.batches(generator(0, "order"))
    batch = next(batches)
    offset = int(batch[0, 1])
    assert batch[:, 2].all()
    assert next(batches)[0].tolist() == [0, offset + task.context, 0]
    losses = task.losses(model, batch)
    assert losses.shape == (task.batch_size * task.context,)
    model.eval()
    state = model.state[0].clone()
    with torch.no_grad():
        found = task.evaluate(model, "validation")
    assert torch.equal(model.state[0], state)
    assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).double().exp().item())
    assert found["perplexity"] == pytest.approx(50, rel=0.05)  # untrained: all fifty words alike


def test_a_small_language_model_is_measured_on_an_equal_part_of_every_stream(monkeypatch):
    count, kept = 2500, 64  # of 100 streams
    texts = {"train": torch.arange(8000) % 65, "validation": torch.arange(100 * count), "test": torch.arange(900)}
    monkeypatch.setattr(language, "load_text", lambda name: SimpleNamespace(**texts, vocabulary=("x",) * 65))
    monkeypatch.setitem(language.TEXTS, "shakespeare", ("tiny-shakespeare", "tiny", 65, 8000))
    task = Language("shakespeare-gpt-small")
    read = task._streamed("validation", torch.device("cpu"))
    assert torch.equal(read, torch.arange(100)[:, None] * count + torch.arange(kept + 1))
    assert task._streamed("test", torch.device("cpu")).numel() == 900


def test_images_are_pooled_to_the_rounded_means_of_four_pixels():
    pixels = torch.tensor([[1, 2, 255, 255], [3, 5, 255, 254]], dtype=torch.uint8).repeat(1, 1, 14, 7)
    assert halved(pixels)[0, 0, 0, :2].tolist() == [3, 255]


@pytest.mark.parametrize(
    "name", ["sgd@step-0.1-0.5-0.75", "arturo@step-0.006-0.5", "adamw@cosine-0.1-0.5", "sgd@step-0.1", "sgd@step-0.1-2"]
)
def test_drops_may_be_part_of_a_contenders_name(name):
    if name in ("sgd@step-0.1-0.5-0.75", "arturo@step-0.006-0.5"):
        found = get_contender(name)
        assert found.schedule == "step"
        assert found.drops == ((0.1, (0.5, 0.75)) if name.startswith("sgd") else (0.006, (0.5,)))
    else:
        with pytest.raises(ValueError, match="drops are written as in"):
            get_contender(name)


def paint(folder: Path) -> None:
    """An image folder: two classes, red and green, in several sizes."""
    drawn = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for number, colour in enumerate(("green", "red")):
            place = folder / "imagenet" / split / colour
            place.mkdir(parents=True)
            for image in range(count):
                pixels = drawn.integers(0, 80, (40 + image, 48 - image, 3), dtype=np.uint8)
                pixels[:, :, 1 - number] += 150
                Image.fromarray(pixels).save(place / f"{image}.JPEG")


def test_imagenet_is_read_from_a_folder_shared_out_trained_on_and_measured(tmp_path, monkeypatch):
    paint(tmp_path)
    monkeypatch.setenv("FALLLINE_DATA", str(tmp_path))
    task = ImageNet("imagenet-efficientnet-b0", size=32).resized(batch_size=4, steps=2)
    assert (task.examples, task.validation, task.classes, task.epoch) == (18, 2, 2, 4)
    whole, *shares = (task.shares(generator(1, "order"), rank, ranks) for rank, ranks in ((0, 1), (0, 2), (1, 2)))
    pixels, labels = next(whole)
    assert pixels.shape == (4, 3, 32, 32)
    assert (pixels[:, 0].float().mean((1, 2)) > pixels[:, 1].float().mean((1, 2))).tolist() == (labels == 1).tolist()
    for part, both in zip((pixels, labels), zip(*map(next, shares), strict=True), strict=True):
        assert torch.equal(part, torch.cat(both))
    seed_torch(0, "init")
    model = task.model()
    made = get_contender("coolmomentum").make(model.parameters(), {"lr": 0.6, "rho_0": 0.99}, task.steps)
    before = [parameter.clone() for parameter in model.parameters()]
    assert Gradients(task, model, made).step((pixels, labels)).isfinite()
    assert all((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        found = task.evaluate(model.eval(), "test")
    assert found.keys() == {"loss", "accuracy"}
    assert found["accuracy"] * 6 == pytest.approx(round(found["accuracy"] * 6))
    assert len(list(task.data())) == 24


@needs_data
@pytest.mark.parametrize(
    ("name", "optimizer", "settings", "steps"),
    [
        ("mnist-mlp", "adamw", {"lr": 1e-2}, 10),
        ("fmnist-softmax", "schedulefree-sgd", {"lr": 0.5}, 10),
        ("mnist-autoencoder", "adamw", {"lr": 1e-2}, 10),
        ("mnist-lstm", "adamw", {"lr": 3e-2}, 10),
        ("cifar10-cnn-bn", "schedulefree-adamw", {"lr": 1e-2}, 10),
        ("shakespeare-gpt-small", "adamw", {"lr": 1e-2}, 10),
        ("fmnist-cnn@batch=32", "adamw", {"lr": 1e-3}, 15),
        ("cifar10-resnet8@batch=32,width=8", "koala-m", {}, 10),
        ("ptb-lstm", "sgd", {"lr": 5.0}, 4),
        ("shakespeare-gpt", "adamw", {"lr": 3e-3}, 10),
        ("mnist-autoregression@size=14,batch=16", "adamw", {"lr": 3e-3}, 8),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value and "koala" not in value else "",
)
def test_on_the_real_data_a_few_steps_lower_the_loss_of_what_was_not_stepped_on(name, optimizer, settings, steps):
    task = get_task(name)
    batches = task.batches(generator(0, "order"))
    seed_torch(0, "init")
    model = task.model()
    made = get_contender(optimizer).make(model.parameters(), settings, steps)
    aside = next(batches)
    with torch.no_grad():
        before = task.losses(model, aside).mean()
    gradients = Gradients(task, model, made)
    for _ in range(steps):
        gradients.step(next(batches))
    with torch.no_grad():
        assert task.losses(model, aside).mean() < before


def test_a_run_with_a_carried_state_goes_on_from_its_checkpoint_to_the_same_numbers(monkeypatch, tmp_path):
    task = small_text(monkeypatch)
    task.steps, task.evaluations = 6, 3
    monkeypatch.setattr("fallline.bench.runs.plan.get_task", lambda name: task)
    run = Run("ptb-lstm", "sgd", {"lr": 1.0}, seed=0)
    whole = train(run)
    seen: list[int] = []
    losses = task.losses

    def stop(model: nn.Module, batch: Tensor) -> Tensor:
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return losses(model, batch)

    monkeypatch.setattr(task, "losses", stop)
    with pytest.raises(KeyboardInterrupt):
        train(run, Checkpoint(tmp_path / "run", every=0))
    resumed = train(run, Checkpoint(tmp_path / "run", every=0))
    assert resumed.curve == whole.curve
    assert len(seen) == 5 + 2
