"""The papers' networks: sizes, shapes, what each may look at, and where its weights start."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.tasks import networks as models
from fallline.bench.tasks.networks.autoregressor import planes
from fallline.bench.tasks.networks.efficientnet import MBConv, Stage
from fallline.bench.tasks.networks.resnet import STEMS, Bottleneck

Make = Callable[[], nn.Module]

COUNTS: dict[str, tuple[int, Make]] = {
    "mlp": (784 * 128 + 128 + 128 * 10 + 10, lambda: models.mlp(784, 128, 10)),
    # arTuRO's paper: 0.39 M, 0.65 M, 0.68 M
    "fashion-cnn": (390_410, models.fashion_cnn),
    "cifar-cnn": (653_386, models.cifar_cnn),
    "cifar-cnn-100": (676_516, lambda: models.cifar_cnn(100)),
    # Keras's example counts 274,442, of which 1,376 are the running statistics
    "resnet8": (78_186, models.resnet8),
    "resnet20": (274_442 - 1_376, models.resnet20),
    # torchvision's table of models
    "resnet18-imagenet": (11_689_512, lambda: models.resnet18(1000, stem="imagenet")),
    "resnet34-imagenet": (21_797_672, lambda: models.resnet34(1000, stem="imagenet")),
    "resnet50-imagenet": (25_557_032, lambda: models.resnet50(1000, stem="imagenet")),
    "wrn50-2-imagenet": (68_883_240, lambda: models.wide_resnet50_2(1000, stem="imagenet")),
    "efficientnet-b0": (5_288_548, models.efficientnet_b0),
    # the same less what the larger stem and the larger classifier have more
    "resnet18": (11_689_512 - 64 * 3 * (49 - 9) - 513 * 990, models.resnet18),
    "resnet34": (21_797_672 - 64 * 3 * (49 - 9) - 513 * 990, models.resnet34),
    "resnet50": (25_557_032 - 64 * 3 * (49 - 9) - 2049 * 990, models.resnet50),
    "wrn50-2": (68_883_240 - 64 * 3 * (49 - 9) - 2049 * 990, models.wide_resnet50_2),
    # embedding, four gates with two biases in each of two layers, and the head's bias
    "lstm": (10_000 * 200 + 2 * 4 * (400 * 200 + 400) + 10_000, lambda: models.LSTM(10_000)),
    "lstm-large": (10_000 * 1500 + 2 * 4 * (3000 * 1500 + 3000) + 10_000, lambda: models.LSTM(10_000, 1500)),
    # a layer of width d has 12 d² + 13 d
    "gpt": ((65 + 64) * 128 + 4 * (12 * 128**2 + 13 * 128) + 256, lambda: models.GPT(65, 64)),
    "transformer": (10_035 * 200 + 2 * (6 * 200**2 + 10 * 200) + 400, lambda: models.transformer(10_000, 35)),
    "autoencoder": (2 * (784 * 32 + 32 * 8) + 32 + 8 + 32 + 784, lambda: models.autoencoder(784, 32, 8)),
    "bn-cnn": (9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 650, models.bn_cnn),
    "row-lstm": (4 * 32 * (28 + 32 + 2) + 330, lambda: models.RowLSTM(28)),
    # LODO's paper
    "autoregressor": (94_696, models.Autoregressor),
}

IMAGE, TOKENS = (2, 3, 32, 32), 9

SMALL: dict[str, tuple[Make, Callable[[], tuple[Tensor, ...]], tuple[int, ...]]] = {
    "mlp": (lambda: models.mlp(12, 8, 8, 5), lambda: (torch.rand(2, 3, 2, 2),), (2, 5)),
    "fashion-cnn": (models.fashion_cnn, lambda: (torch.rand(2, 1, 28, 28),), (2, 10)),
    "cifar-cnn": (lambda: models.cifar_cnn(100), lambda: (torch.rand(IMAGE),), (2, 100)),
    "resnet8": (lambda: models.resnet8(width=4), lambda: (torch.rand(IMAGE),), (2, 10)),
    "resnet20": (lambda: models.resnet20(7, channels=1), lambda: (torch.rand(2, 1, 28, 28),), (2, 7)),
    "resnet18": (lambda: models.resnet18(channels=1), lambda: (torch.rand(2, 1, 16, 16),), (2, 10)),
    "resnet50": (lambda: models.resnet50(stem="imagenet"), lambda: (torch.rand(2, 3, 64, 64),), (2, 10)),
    "efficientnet-b0": (lambda: models.efficientnet_b0(6), lambda: (torch.rand(2, 3, 64, 64),), (2, 6)),
    "autoencoder": (lambda: models.autoencoder(12, 8, 3), lambda: (torch.rand(2, 3, 2, 2),), (2, 12)),
    "bn-cnn": (lambda: models.bn_cnn(1, 7), lambda: (torch.rand(2, 1, 28, 28),), (2, 7)),
    "row-lstm": (lambda: models.RowLSTM(3 * 6, 8, 5), lambda: (torch.rand(2, 3, 4, 6),), (2, 5)),
    "lstm": (lambda: models.LSTM(11, 8), lambda: (tokens(11),), (2, TOKENS, 11)),
    "gpt": (lambda: models.GPT(11, TOKENS, width=8), lambda: (tokens(11),), (2, TOKENS, 11)),
    "transformer": (lambda: models.transformer(11, TOKENS), lambda: (tokens(11),), (2, TOKENS, 11)),
    "autoregressor": (models.Autoregressor, lambda: (grey(2, 14), torch.tensor([100, 195])), (2, 256)),
    "autoregressor-28": (models.Autoregressor, lambda: (grey(2, 28), torch.tensor([100, 783])), (2, 256)),
}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """The same weights and inputs in whatever order the tests run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tokens(vocabulary: int) -> Tensor:
    """Two rows of some."""
    return torch.randint(vocabulary, (2, TOKENS))


def grey(n: int, size: int) -> Tensor:
    """Images of noise."""
    return torch.randint(256, (n, 1, size, size), dtype=torch.uint8)


def logits(model: nn.Module, *inputs: Tensor) -> Tensor:
    """What it returns, without the LSTM's state."""
    output = model(*inputs)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_number_of_parameters_comes_out(name: str) -> None:
    """Of the meta device, where the largest costs nothing; and what is tied counts once."""
    count, make = COUNTS[name]
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", SMALL)
def test_logits_have_their_shape_every_parameter_a_gradient_and_a_seed_repeats_it_all(name: str) -> None:
    """In training, with dropout and stochastic depth."""
    make, draw, shape = SMALL[name]
    inputs = draw()

    def trained(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        model = make()
        output = logits(model, *inputs)
        assert output.shape == shape
        output.square().mean().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        return [output, *gradients]

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("stem", "size", "sizes"), [("cifar", 32, (32, 32, 16, 8, 4)), ("imagenet", 224, (56, 56, 28, 14, 7))], ids=STEMS
)
def test_a_stem_decides_on_the_resolution_of_all_stages(stem: str, size: int, sizes: tuple[int, ...]) -> None:
    """As in the two papers' tables; and a bottleneck halves in its 3x3 convolution."""
    with torch.device("meta"):
        model = models.resnet50(stem=stem)  # type: ignore[arg-type]
        found = [features := model.stem(torch.empty(1, 3, size, size))]
        found += [features := stage(features) for stage in model.stages]
    assert tuple(features.shape[-1] for features in found) == sizes
    assert tuple(features.shape[1] for features in found) == (64, 256, 512, 1024, 2048)
    block = model.stages[1][0]
    assert isinstance(block, Bottleneck)
    assert [conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)] == [1, 2, 1]


def test_efficientnets_stages_are_those_of_table_1() -> None:
    """Resolution and channels at 224x224."""
    with torch.device("meta"):
        model = models.efficientnet_b0()
        found = [features := model.stem(torch.empty(1, 3, 224, 224))]
        found += [features := stage(features) for stage in model.stages]
        found.append(model.head(features))
    assert [(features.shape[-1], features.shape[1]) for features in found] == [
        *((112, 32), (112, 16), (56, 24), (28, 40), (14, 80), (14, 112), (7, 192), (7, 320), (7, 1280))
    ]
    drops = [block.drop for block in model.modules() if isinstance(block, MBConv)]
    assert drops == pytest.approx([0.2 * index / 16 for index in range(16)])


def test_stochastic_depth_drops_whole_examples_and_scales_up_the_others() -> None:
    """So that the mean over the draws is what evaluation computes."""
    block = MBConv(8, Stage(6, 3, 1, 8, 1), 1, drop=0.75)
    x = torch.rand(200, 8, 4, 4)
    for module in block.modules():
        module.train(module is block)  # running statistics in both
    added = block(x) - x
    dropped = added.abs().amax((1, 2, 3)) == 0
    expected = block.eval()(x) - x
    assert 120 <= dropped.sum() <= 180  # 150 ± 5 standard deviations of 6
    torch.testing.assert_close(added[~dropped], 4 * expected[~dropped], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "gpt", "transformer"])
def test_a_later_token_changes_no_earlier_logits(name: str) -> None:
    """But its own and those after."""
    make, draw, _ = SMALL[name]
    model, (before,) = make().eval(), draw()
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % 11
    change = (logits(model, after) - logits(model, before)).abs().amax((0, 2))
    assert (change[:5] < 1e-6).all()
    assert (change[5:] > 1e-6).all()


def test_an_lstm_goes_on_from_its_state() -> None:
    """Two halves equal the whole."""
    model, text = models.LSTM(11, 8).eval(), tokens(11)
    whole, _ = model(text)
    first, state = model(text[:, :4])
    second, _ = model(text[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


@pytest.mark.parametrize("name", ["cifar-cnn", "resnet8", "lstm", "gpt", "autoregressor"])
def test_mixed_precision_changes_only_the_last_digits(name: str) -> None:
    """In bfloat16, on any processor."""
    make, draw, _ = SMALL[name]
    model, inputs = make().eval(), draw()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logits(model, *inputs)
    assert mixed.dtype == torch.bfloat16
    full = logits(model, *inputs)
    assert (mixed - full).norm() < 0.05 * full.norm()


def test_embedding_and_head_are_one_tensor_where_they_are_tied() -> None:
    """Also after a checkpoint; and an untied LSTM has two."""
    gpt, lstm = models.GPT(11, 5, width=8), models.LSTM(11, 8)
    gpt.load_state_dict({name: tensor + 1 for name, tensor in gpt.state_dict().items()})
    assert gpt.head.weight is gpt.tokens.weight
    assert lstm.head.weight is lstm.embedding.weight
    assert sum(p.numel() for p in models.LSTM(11, 8, tied=False).parameters()) == 88 + sum(
        p.numel() for p in lstm.parameters()
    )


def test_the_planes_of_a_small_image() -> None:
    """2x3 pixels, of which the fifth is asked for: four are visible, and two columns are left of it or its own."""
    image = torch.tensor([[[[64.0, 128.0, 192.0], [32.0, 16.0, 8.0]]]])
    seen = planes(image, torch.tensor([4]))
    expected = [
        [[0.25, 0.5, 0.75], [0.125, 0.0, 0.0]],
        [[1.0, 1.0, -1.0], [1.0, 1.0, -1.0]],
        [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0]],
        [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]],
        [[-1.0, -1 / 3, 1 / 3], [-1.0, -1 / 3, 1 / 3]],
    ]
    torch.testing.assert_close(seen, torch.tensor([expected]))


def test_the_autoregressor_sees_no_pixel_at_its_position_or_after() -> None:
    """And sees all before, each row with its own position; the same image at another position gives other logits."""
    model, images = models.Autoregressor().double(), grey(4, 14)
    pixel = torch.tensor([0, 1, 99, 195])
    hidden = torch.arange(196) >= pixel[:, None]
    later = torch.where(hidden.view(4, 1, 14, 14), 255 - images, images)
    assert torch.equal(model(later, pixel), model(images, pixel))
    earlier = torch.where(hidden.view(4, 1, 14, 14), images, 255 - images)
    change = (model(earlier, pixel) - model(images, pixel)).abs().amax(1)
    assert change[0] == 0
    assert (change[1:] > 0).all()
    same = model(images[:1].expand(4, -1, -1, -1), pixel)
    assert len(same.unique(dim=0)) == 4


def test_the_autoregressor_equals_its_equations_written_out() -> None:
    """Filters as sums over shifted images, pools as means over what there is, in float64, at an odd size."""
    model, images, pixel = models.Autoregressor().double(), grey(3, 5), torch.tensor([3, 11, 24])

    def pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return torch.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]

    x = pointwise(model.first, planes(images.double(), pixel))
    for stage in model.stages:
        for block in stage:
            y = pointwise(block.widen, x).atan()
            height, width = y.shape[-2:]
            padded = F.pad(y, (1, 1, 1, 1))
            filtered = []
            for output in range(120):
                sums = block.depthwise.bias[output] + sum(
                    block.depthwise.weight[output, 0, i, j] * padded[:, output % 40, i : i + height, j : j + width]
                    for i in range(3)
                    for j in range(3)
                )
                filtered.append(sums)
            x = x + pointwise(block.narrow, torch.stack(filtered, dim=1).atan())
        rows = [torch.stack([part.mean((2, 3)) for part in strip.split(2, dim=3)], -1) for strip in x.split(2, dim=2)]
        x = torch.stack(rows, dim=2)
    assert x.shape == (3, 20, 1, 1)
    expected = x.flatten(1) @ model.last.weight.T + model.last.bias
    torch.testing.assert_close(model(images, pixel), expected, rtol=1e-10, atol=1e-10)


def test_weights_start_as_the_authors_have_them() -> None:
    """Standard deviations and bounds of the large tensors; a tenth is above five standard errors of each."""
    small, large, gpt = models.resnet20(), models.resnet18(), models.GPT(65, 64)
    lstm, pixels, efficient = models.LSTM(100), models.Autoregressor(), models.efficientnet_b0(10)
    keras = small[-4].conv2.weight
    reached = efficient.stages[6][0].layers[2][0]  # depthwise: 9 outputs for each input
    expected = [
        (keras, math.sqrt(2 / (9 * 64))),
        (large.stages[3][1].conv2.weight, math.sqrt(2 / (9 * 512))),
        (gpt.tokens.weight, 0.02),
        (gpt.blocks[1].up.weight, 0.02),
        (gpt.blocks[1].down.weight, 0.02 / math.sqrt(8)),
        (gpt.blocks[1].attention.out.weight, 0.02 / math.sqrt(8)),
        (lstm.embedding.weight, 0.1 / math.sqrt(3)),
        (pixels.stages[2][1].narrow.weight, 1 / 11),
        (pixels.stages[2][1].depthwise.weight, 1 / math.sqrt(10)),
        (reached.weight, math.sqrt(2 / 9)),
        (efficient.classifier.weight, 1 / math.sqrt(30)),
    ]
    for weight, deviation in expected:
        assert weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert keras.abs().max() <= 2 * math.sqrt(2 / (9 * 64)) / 0.8796
    assert lstm.embedding.weight.abs().max() <= 0.1


@pytest.mark.parametrize("scheme", models.INITIALISATIONS)
def test_an_initialisation_draws_weights_anew_and_leaves_all_else(scheme: str) -> None:
    """Of known variance: 2 / (inputs + outputs) for Xavier, 2 / inputs for Kaiming; orthogonal rows for orthogonal."""
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Linear(300, 200))
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.dim() < 2}
    assert models.initialise(model, scheme) is model
    conv, linear = model[0].weight, model[2].weight
    if scheme == "orthogonal":
        torch.testing.assert_close(linear @ linear.T, torch.eye(200), rtol=0, atol=1e-5)
        torch.testing.assert_close(conv.flatten(1) @ conv.flatten(1).T, torch.eye(64), rtol=0, atol=1e-5)
    elif scheme.startswith("xavier"):
        assert linear.var().item() == pytest.approx(2 / 500, rel=0.05)
        assert conv.var().item() == pytest.approx(2 / (9 * 80), rel=0.1)
    else:
        assert linear.var().item() == pytest.approx(2 / 300, rel=0.05)
        assert conv.var().item() == pytest.approx(2 / (9 * 16), rel=0.1)
    kurtosis = ((linear / linear.std()) ** 4).mean().item()
    assert kurtosis == pytest.approx(1.8 if scheme.endswith("uniform") else 3, rel=0.1)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        pytest.param(lambda: models.initialise(nn.Linear(2, 2), "zeros"), "'zeros': .*orthogonal", id="initialisation"),
        pytest.param(lambda: models.resnet18(stem="mnist"), "'mnist': .*cifar, imagenet", id="stem"),  # type: ignore[arg-type]
        pytest.param(lambda: models.mlp(5), "two sizes", id="sizes"),
        pytest.param(lambda: models.GPT(9, 4, heads=3, width=8), "3 heads do not divide a width of 8", id="heads"),
        pytest.param(
            lambda: models.GPT(9, 4, width=8)(torch.zeros(1, 5, dtype=torch.long)), "context of 4", id="context"
        ),
    ],
)
def test_what_cannot_be_built_says_why(ask: Callable[[], object], answer: str) -> None:
    """In words that name the choices."""
    with pytest.raises(ValueError, match=answer):
        ask()
