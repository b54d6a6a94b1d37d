"""What a fused kernel may touch: memory of plain tensors that fit their parameter, and nothing beyond.

Whatever else a parameter, a gradient or a state is, ``fused=True`` does what ``fused=False`` does, or says why not.
"""

import gc
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import fallline
from fallline._engine import fused as _fused
from fallline._engine.run import run

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # it would leave a folder in the tree

Make = Callable[..., fallline.Optimizer]
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cool": (fallline.CoolMomentum, {"lr": 0.05, "rho_0": 0.9, "skip_nonfinite": True}),
    "koala-v": (fallline.VanillaKOALA, {"lr": 0.5, "sigma": 0.1}),
    "koala-m": (fallline.MomentumKOALA, {"lr": 0.5}),
    "koala-pp": (fallline.KOALAPlusPlus, {"lr": 0.5, "sigma": 0.1, "q": 0.1}),
    "koala-adam": (fallline.MetricKOALA, {"lr": 0.5}),
    "koala-identity": (fallline.MetricKOALA, {"lr": 0.5, "metric": "identity"}),
    "koala-orthogonal": (fallline.OrthogonalKOALA, {"lr": 0.5, "weight_decay": 0.0}),
    "arturo": (fallline.ArTuRO, {"lr": 0.05}),
    "arturo-second-moment": (fallline.ArTuRO, {"lr": 0.05, "curvature": "second-moment"}),
    "lodo": (fallline.LODO, {"lr": 0.1, "meta_lr": 0.01, "preconditioner": "global"}),
}
WITH_STATE = [name for name in METHODS if name not in ("koala-v", "lodo")]
every_method = pytest.mark.parametrize("name", METHODS)
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
GUARD = 77.0  # what lies around a tensor
WORDS = (RuntimeError, NotImplementedError, TypeError, ValueError, Warning)


def in_words(error: BaseException, *said: str) -> None:
    """What is refused is refused in a sentence, in which so much is said."""
    assert len(str(error).split()) > 3
    assert all(part in str(error) for part in said)


def make(name: str, params: Any, fused: bool) -> fallline.Optimizer:
    cls, chosen = METHODS[name]
    optimizer: fallline.Optimizer = cls(params, **chosen, fused=fused)
    return optimizer


def step(optimizer: fallline.Optimizer) -> None:
    optimizer.step(loss=torch.tensor(0.7))


# -- any tensors -----------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A tensor in a buffer that is larger than it."""

    tensor: Tensor
    buffer: Tensor

    def is_kept(self) -> bool:
        """Whether all that lies around the tensor is as it was; the tensor itself is lost."""
        self.tensor.detach().fill_(-GUARD if self.tensor.is_neg() else GUARD)
        return bool((self.buffer == GUARD).all())


def placed(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Place:
    """Normal values; of the wanted layout as far as the shape has it."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    value = torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    n = value.numel()
    gap = 3 if layout == "with gaps" else 1
    buffer = torch.full((gap * n + 16,), GUARD, dtype=dtype)
    middle = buffer[8 : 8 + gap * n : gap]
    if layout == "transposed" and len(shape) > 1:
        t = middle.view(*shape[:-2], shape[-1], shape[-2]).mT
    elif layout == "channels last" and len(shape) > 2:
        t = middle.view(*shape[1:], shape[0]).movedim(-1, 0)
    elif layout == "expanded" and shape:
        t = buffer[8:9].expand(shape)
        value = value.flatten()[:1].expand(shape) if n else value
    elif layout == "overlapping" and len(shape) > 1 and n:
        t = buffer.as_strided(shape, [1] * len(shape), 8)
    else:
        t = middle.view(shape) if gap == 1 else middle.unflatten(0, shape) if shape else middle[0]
    if layout == "negated":
        t = t.conj() if dtype.is_complex else torch._neg_view(t)
    if layout == "expanded" and shape and n:
        buffer[8] = value.flatten()[0]
    elif layout != "overlapping":
        t.copy_(value)
    return Place(t, buffer)


LAYOUTS = ["contiguous", "transposed", "channels last", "with gaps", "negated"]
shapes = st.one_of(
    st.lists(st.integers(1, 4), max_size=4).map(tuple), st.sampled_from([(), (0,), (2, 0), (1, 1), (300,)])
)
tensors = st.tuples(
    shapes,
    st.sampled_from([*LAYOUTS, "contiguous", "transposed", "expanded", "overlapping"]),
    st.sampled_from([*LAYOUTS, "contiguous", "expanded", "overlapping"]),
    st.sampled_from(list(ROUNDING)),
    st.booleans(),
)


@every_method
@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(recipe=st.lists(tensors, min_size=1, max_size=4), seed=st.integers(0, 999))
def test_any_tensors_are_stepped_as_without_fused_or_refused(name: str, recipe: Any, seed: int) -> None:
    ends: list[Any] = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(seed)
        places = [placed(shape, layout, dtype, generator) for shape, layout, _, dtype, _ in recipe]
        ps = [nn.Parameter(place.tensor) for place in places]
        told = None
        try:
            optimizer = make(name, ps, fused)
            for _ in range(3):
                for p, (shape, _, layout, dtype, narrow) in zip(ps, recipe, strict=True):
                    p.grad_dtype = None  # a gradient may have a precision of its own
                    other = torch.bfloat16 if narrow and dtype.is_floating_point else dtype
                    p.grad = placed(shape, layout, other, generator).tensor
                step(optimizer)
        except WORDS as error:
            told = str(error)
            assert len(told.split()) > 3
        values = [p.detach().resolve_conj().resolve_neg().clone() for p in ps]
        assert all(place.is_kept() for place in places)
        ends.append(told if told is not None else values)
    eager, fused = ends
    if isinstance(eager, str) or isinstance(fused, str):
        assert isinstance(eager, str) or {"expanded", "overlapping"} & {layout for _, layout, *_ in recipe}, fused
        return
    near = max(ROUNDING[dtype] for *_, dtype, _ in recipe)
    if any(narrow for *_, narrow in recipe):
        near = max(near, ROUNDING[torch.bfloat16])
    for a, b in zip(eager, fused, strict=True):
        torch.testing.assert_close(b, a, rtol=near, atol=near)


# -- state that somebody put there -----------------------------------------------------------------------------------


def longer(t: Tensor) -> Tensor:
    return t.new_ones(t.shape[0] + 200, *t.shape[1:])


STRANGE: dict[str, Callable[[Tensor], Any]] = {
    "transposed": lambda t: t.mT.contiguous(),
    "longer": longer,
    "shorter": lambda t: t[:1].clone(),
    "flat": lambda t: t.reshape(-1).clone(),
    "empty": lambda t: t[:0].clone(),
    "text": lambda t: "text",
}
SAME: dict[str, Callable[[Tensor], Any]] = {  # of the right shape, but not as the kernels' tables would have it
    "other layout": lambda t: t.mT.contiguous().mT,
    "repeated": lambda t: t.new_ones(()).expand(t.shape),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "int32": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "without memory": lambda t: without_memory(t),
    "negated": lambda t: torch._neg_view(t.neg()),
    "wrapped": lambda t: Halved(t),
    "of a subclass": lambda t: t.as_subclass(Named),
    "parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "shared": lambda t: t,
}


def without_memory(t: Tensor) -> Tensor:
    """As FSDP's first version leaves weights: with a shape, and no bytes."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def two(name: str, fused: bool, dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], fallline.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    ps = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 7), (3, 2))]
    optimizer = make(name, [("first", ps[0]), ("second", ps[1])], fused)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return ps, optimizer


def of_its_size(optimizer: fallline.Optimizer, p: Tensor) -> list[str]:
    return [key for key, value in optimizer.state[p].items() if value.shape == p.shape]


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("fused", [False, True])
def test_state_of_another_shape_is_refused_and_named(name: str, kind: str, fused: bool) -> None:
    ps, optimizer = two(name, fused)
    step(optimizer)
    for key in of_its_size(optimizer, ps[0]):
        ps, optimizer = two(name, fused)
        step(optimizer)
        optimizer.state[ps[0]][key] = STRANGE[kind](optimizer.state[ps[0]][key])
        words = "is no tensor" if kind == "text" else r"has the shape .*, and the parameter has \(5, 7\)"
        method = type(optimizer).__name__
        with pytest.raises(RuntimeError, match=rf"^{method}: {key} of parameter 0 \(first\) in group 0 {words}"):
            step(optimizer)


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("name", WITH_STATE)
def test_strange_state_of_the_right_shape_is_stepped_as_without_fused_or_refused(name: str, kind: str) -> None:
    ends: list[Any] = []
    for fused in (False, True):
        ps, optimizer = two(name, fused)
        step(optimizer)
        keys = of_its_size(optimizer, ps[0])
        found = []
        for key in keys:
            ps, optimizer = two(name, fused)
            step(optimizer)
            own = optimizer.state[ps[0]]
            own[key] = SAME[kind](own[key])
            if kind == "shared":  # one memory for two states of a parameter
                own[key] = own[keys[0]]
            try:
                step(optimizer)
                step(optimizer)
                found.append([p.detach().clone() for p in ps])
            except WORDS as error:
                in_words(error)
                found.append(None)
        ends.append(found)
    near = 2e-2 if "16" in kind or kind == "wrapped" else 1e-5
    for eager, fused in zip(*ends, strict=True):
        assert (eager is None) <= (fused is None)
        if fused is None:
            assert eager is None or kind == "repeated"
        else:
            for a, b in zip(eager, fused, strict=True):
                torch.testing.assert_close(b, a, rtol=near, atol=near, equal_nan=True)


@pytest.mark.parametrize("key", ["theta", "momentum", "moved", "step_size", "first_moment", "permutations"])
def test_networks_of_another_shape_are_refused(key: str) -> None:
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = fallline.LODO([p], depth=2, block_size=2)
    for change in (lambda t: t.new_zeros(*t.shape, 2), lambda t: torch.full_like(t, 10**6)):
        state = dict(optimizer.state[p])
        p.grad = torch.ones_like(p)
        optimizer.state[p][key] = change(optimizer.state[p][key])
        if key == "permutations" or optimizer.state[p][key].shape != state[key].shape:
            with pytest.raises((RuntimeError, IndexError, ValueError)):
                optimizer.step()
        optimizer.state[p] = state


# -- subclasses ------------------------------------------------------------------------------------------------------


class Named(Tensor):
    """With memory of its own, and what it is asked for noted by ``__torch_function__``."""

    asked: list[str] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.asked.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


class Halved(Tensor):
    """Float32 to the outside, bfloat16 inside, as quantized weights are: there is no memory at its address."""

    inside: Tensor

    @staticmethod
    def __new__(cls, t: Tensor) -> "Halved":
        made: Halved = Tensor._make_wrapper_subclass(cls, t.shape, dtype=t.dtype, device=t.device)
        made.inside = t.detach().bfloat16()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            made = Halved(args[0].inside.float())
            made.inside = args[0].inside
            return made
        plain = tree_map(lambda a: a.inside.float() if isinstance(a, Halved) else a, (args, kwargs or {}))
        out = func(*plain[0], **plain[1])
        if func._schema.is_mutable and isinstance(args[0], Halved):
            args[0].inside.copy_(plain[0][0])
            return args[0]
        return out


@pytest.mark.parametrize("name", [*WITH_STATE, "koala-v"])  # LODO puts all into one vector, and compiles what it is
@pytest.mark.parametrize("kind", [Named, Halved])
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_subclasses_of_tensors_run_as_without_fused_or_are_refused(name: str, kind: type, what: str) -> None:
    def made(t: Tensor) -> Tensor:
        return Halved(t) if kind is Halved else t.as_subclass(Named)

    ends: list[Any] = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(shape, generator=generator) for shape in ((5, 7), (3,), (2, 2))]
        ps = [nn.Parameter(made(t) if i < 2 and what == "parameter" else t) for i, t in enumerate(values)]
        try:
            optimizer = make(name, ps, fused)
            for _ in range(3):
                for i, p in enumerate(ps):
                    g = torch.randn(p.shape, generator=generator)
                    p.grad = made(g) if i < 2 and what == "gradient" else g
                step(optimizer)
            ends.append([(p.inside.float() if isinstance(p, Halved) else p).detach().clone() for p in ps])
        except WORDS as error:
            in_words(error)
            ends.append(None)
    eager, fused = ends
    assert (eager is None) == (fused is None)
    if eager is not None:
        for a, b in zip(eager, fused, strict=True):
            torch.testing.assert_close(torch.Tensor(b), torch.Tensor(a), rtol=2e-2, atol=2e-2)


def fake(t: Tensor) -> Tensor:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty_like(t)


def leaked(t: Tensor) -> Tensor:
    """What a transform of torch.func worked on, after its end."""
    seen = []
    torch.func.vmap(lambda x: (seen.append(x), x.sum())[1])(t)
    return seen[0]


UNFIT: dict[str, Callable[[Tensor], Any]] = {
    "fake": fake,
    "of a transform": leaked,
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "mkldnn": lambda t: t.to_mkldnn(),
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "masked": lambda t: torch.masked.masked_tensor(t, t > 0),
    "without memory": without_memory,
    "buffer": nn.Buffer,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.filterwarnings("ignore")
def test_nothing_without_plain_memory_reaches_a_program(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each place of a launch; eager then computes it or says why not."""

    def count_(p: Tensor, g: Tensor) -> None:
        p.add_(g)

    seen: list[int] = []
    call = _fused._c.Program.__call__

    def note(self: Any, columns: Any, *rest: Any) -> Any:
        seen.append(len(columns[0]))
        return call(self, columns, *rest)

    monkeypatch.setattr(_fused._c.Program, "__call__", note)
    for place in (0, 1):
        columns = [[torch.ones(2, 3), torch.ones(2, 3)] for _ in range(2)]
        columns[place][1] = UNFIT[kind](columns[place][1])
        try:
            run(count_, columns, {}, True)
        except (*WORDS, AttributeError) as error:
            in_words(error, *[] if kind != "buffer" else ["a buffer is plain memory"])
        else:
            assert columns[0][0].tolist() == [[2.0] * 3] * 2
        assert kind == "buffer" or sum(seen) <= 1
        seen.clear()


# -- memory that is shared -------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("kind", ["the same", "shifted", "a part"])
def test_parameters_that_share_memory_are_written_one_after_the_other(name: str, kind: str) -> None:
    """Whatever the number of threads."""
    threads, ends = torch.get_num_threads(), []
    try:
        for fused, number in ((False, 1), (True, 1), (True, 3)):
            torch.set_num_threads(number)
            n = 100_000 if name in ("cool", "koala-v") else 50  # beyond a thread's piece
            memory = torch.linspace(-1, 1, n + 40)
            others = {"the same": memory[:n], "shifted": memory[17 : n + 17], "a part": memory[5:25]}
            ps = [nn.Parameter(memory[:n]), nn.Parameter(torch.ones(3)), nn.Parameter(others[kind])]
            optimizer = make(name, ps, fused)
            for t in range(3):
                for i, p in enumerate(ps):
                    p.grad = torch.linspace(0.1 * i, 0.1 * t + 0.2, p.numel())
                step(optimizer)
            ends.append([memory, ps[1].detach()])
    finally:
        torch.set_num_threads(threads)
    for fused in ends[1:]:
        for a, b in zip(ends[0], fused, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lodo"])
def test_a_parameter_that_repeats_its_elements_is_refused_and_named(name: str) -> None:
    p = nn.Parameter(torch.ones(1).expand(4))
    optimizer = make(name, [("weight", p)], True)
    p.grad = torch.ones(4)
    message = (
        r"parameter of parameter 0 \(weight\) in group 0 repeats elements \(strides \(0,\)\), and is to be written"
    )
    with pytest.raises(RuntimeError, match=message):
        step(optimizer)
    assert p.tolist() == [1.0] * 4


# -- what was known once ---------------------------------------------------------------------------------------------


def shrunk(p: Tensor) -> None:
    p.data = p.data[:2]


def grown(p: Tensor) -> None:
    p.data = torch.ones(300, 7)


def turned(p: Tensor) -> None:
    p.data = p.data.mT.contiguous()


def resized(p: Tensor) -> None:
    p.requires_grad_(False).resize_(300, 7).fill_(1).requires_grad_()


def viewed(p: Tensor) -> None:
    p.data = p.data.as_strided((5, 7), (1, 5))  # the same address, the same size, other strides


@pytest.mark.parametrize("change", [shrunk, grown, turned, resized, viewed])
@pytest.mark.parametrize("name", ["cool", "koala-m", "koala-pp", "arturo"])
def test_a_parameter_that_changes_between_steps_is_looked_at_again(name: str, change: Callable[..., None]) -> None:
    ends: list[Any] = []
    for fused in (False, True):
        ps, optimizer = two(name, fused)
        step(optimizer)
        step(optimizer)
        change(ps[0])
        ps[0].grad = torch.ones_like(ps[0])
        try:
            step(optimizer)
            ends.append([p.detach().clone() for p in ps])
        except RuntimeError as error:
            in_words(error, "has the shape")
            ends.append(None)
    assert (ends[0] is None) == (ends[1] is None) == (change is not viewed)
    if change is viewed:
        for a, b in zip(*ends, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_another_shape_is_refused() -> None:
    for fused in (False, True):
        ps, optimizer = two("cool", fused)
        step(optimizer)
        ps[0].grad.data = ps[0].grad.data.mT.contiguous()
        with pytest.raises(RuntimeError, match=r"gradient of parameter 0 \(first\) in group 0 has the shape \(7, 5\)"):
            step(optimizer)


def test_what_is_remembered_keeps_no_gradient_alive_and_is_not_copied() -> None:
    ps, optimizer = two("cool", True)
    step(optimizer)
    gradients = [weakref.ref(p.grad) for p in ps]
    for p in ps:
        p.grad = None
    gc.collect()
    assert [gradient() for gradient in gradients] == [None, None]
    assert "_kept" not in optimizer.__getstate__()


@pytest.mark.parametrize("length", [1, 3])
def test_numbers_of_another_length_are_refused(length: int) -> None:
    def scale_(p: Tensor, k: Tensor) -> None:
        p.mul_(k)

    ps = [torch.ones(3), torch.ones(4)]
    for fused in (False, True):
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is (shorter|longer)"):
            run(scale_, [ps, torch.ones(length)], {}, fused)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(0.5),
        torch.tensor(0.5).bfloat16(),
        torch.tensor([0.5]),
        torch.ones(3)[1:2] / 2,
        torch.tensor(1 + 0.5j).conj().imag.neg(),
        torch.tensor(2, dtype=torch.int32) / 4,
    ],
)
def test_a_shared_number_may_be_any_tensor_of_one(value: Tensor) -> None:
    def scale_(p: Tensor, *, a: Tensor) -> None:
        p.mul_(a)

    for fused in (False, True):
        p = torch.ones(3)
        run(scale_, [[p]], {"a": value}, fused)
        assert p.tolist() == [0.5] * 3
    for strange in (torch.ones(2), torch.ones((), dtype=torch.complex64)):
        with pytest.raises(RuntimeError, match=r"argument a is no real number, but torch"):
            run(scale_, [[p]], {"a": strange}, True)
    run(scale_, [[p]], {"a": Halved(torch.tensor(0.5))}, True)
    assert p.tolist() == [0.25] * 3
