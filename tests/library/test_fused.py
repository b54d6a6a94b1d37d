"""Fused kernels: the tape says what a kernel does, the code made from it does the same, and nothing is made twice."""

import copy
import ctypes
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fallline import ArTuRO, CoolMomentum, MomentumKOALA
from fallline._engine import c as _c
from fallline._engine import cache as _cache
from fallline._engine import fused as _fused
from fallline._engine import run as _foreach
from fallline._engine import triton as _triton
from fallline._engine.run import run
from fallline._engine.tape import AFTER, BEFORE, INSIDE, Column, record
from fallline.kernels import dot, squared_norm

HERE = Path(__file__).parents[1] / "helpers"
F32, F64 = torch.float32, torch.float64
SIZES = [(), (1,), (31,), (32, 3), (4097,), (1 << 16,), (70_001,)]


def arithmetic_(p: Tensor, g: Tensor, s: Tensor, k: Tensor, *, a: Any, b: Any, ok: Any) -> None:
    """Each word of the vocabulary that is computed for an element."""
    h = torch.where(ok, g, 0.0)
    u = (2 - h) * a + k * p - h / (1 + s.square())
    v = torch.addcmul(u, h, p, value=0.5).sub_(h, alpha=2).abs().sqrt().neg_().add_(p.clamp(-1, 1))
    w = torch.lerp(v, u, b).clamp_min(-3).clamp_max(3).maximum(h).minimum(s + 5).mul_(0.3).exp()
    mask = ((w > 1) & ~(w >= 2)) | (w < 0.5) | (w.le(0.1)) | (w == 7) | (w != w)
    p.copy_(torch.where(mask, w, v.reciprocal() + 1 / (3 + h**2)))
    s.lerp_(h, k).add_(p)


def sums(p: Tensor, g: Tensor, s: Tensor, k: Tensor, *, a: Any, b: Any, ok: Any) -> tuple[Tensor, ...]:
    return (p * g).sum() * a, squared_norm(g + b) + (p * k).sum(), dot(p, s) * k, p.amax(), (-s * k).amax()


def tensors(dtype: torch.dtype, seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    lists = [[torch.randn(s, generator=generator, dtype=F64).to(d) for s in SIZES] for d in (dtype, dtype, wide)]
    return [*lists, torch.rand(len(SIZES), generator=generator, dtype=F64)]


@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (F32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_code_does_what_the_kernel_does(dtype: torch.dtype, rtol: float, ok: bool) -> None:
    scalars = dict(a=0.7, b=torch.tensor(0.2, dtype=F64), ok=torch.tensor(ok))
    ends = []
    for fused in (False, True):
        lists = tensors(dtype)
        if not ok:
            lists[1][4][7] = torch.nan
        run(arithmetic_, lists, scalars, fused)
        found = run(sums, [lists[0], lists[2], *lists[2:]], scalars, fused, maxima=2)
        assert found is not None
        assert found.shape == (len(SIZES), 5)
        ends.append([*lists[0], *lists[1], *lists[2], found.to(F64)])
    for eager, fused in zip(*ends, strict=True):
        torch.testing.assert_close(eager, fused, rtol=rtol, atol=10 * rtol, equal_nan=True)


def test_a_mixed_list_is_sorted_by_dtypes() -> None:
    """Norms in float32 beside weights in bfloat16, as models have them."""
    ends = []
    for fused in (False, True):
        half, full = tensors(torch.bfloat16), tensors(F32)
        lists = [[x for pair in zip(a, b, strict=True) for x in pair] for a, b in zip(half[:3], full[:3], strict=True)]
        lists.append(torch.cat([half[3], full[3]]))
        scalars = dict(a=0.7, b=0.2, ok=torch.tensor(True))
        found = run(sums, lists, scalars, fused, maxima=2)
        run(arithmetic_, lists, scalars, fused)
        ends.append([*lists[0], *lists[2], found])
    for eager, fused in zip(*ends, strict=True):
        torch.testing.assert_close(eager.float(), fused.float(), rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("view", ["channels last", "transposed", "slice", "mixed"])
def test_any_layout_is_read_and_written(view: str) -> None:
    """Weights in channels last, gradients that are not, a parameter that is a slice of another tensor."""

    def cut(t: Tensor, which: str) -> Tensor:
        if which == "channels last":
            return t.contiguous(memory_format=torch.channels_last)
        return t.transpose(0, 1).contiguous().transpose(0, 1) if which == "transposed" else t

    ends = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(1)
        p, g, s = (torch.randn(4, 3, 5, 6, generator=generator, dtype=F64) for _ in range(3))
        whole = torch.zeros(8, 3, 5, 12, dtype=F64)
        if view == "slice":
            whole[::2, ..., ::2] = p
            p = whole[::2, ..., ::2]
        else:
            p, s = (cut(t, "channels last" if view == "mixed" else view) for t in (p, s))
            g = g if view == "mixed" else cut(g, view)
        strides = p.stride(), s.stride()
        run(arithmetic_, [[p], [g], [s], torch.ones(1, dtype=F64)], dict(a=0.7, b=0.2, ok=torch.tensor(True)), fused)
        assert (p.stride(), s.stride()) == strides
        ends.append((p, s, whole))
    for eager, fused in zip(*ends, strict=True):
        torch.testing.assert_close(eager, fused, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_not_a_number_and_infinity_are_kept(fused: bool) -> None:
    def extremes(p: Tensor) -> tuple[Tensor, ...]:
        return p.amax(), p.clamp_min(0.0).amax(), p.maximum(0.5 * p).amax(), p.minimum(2 * p).amax(), p.sum()

    for at in (0, 31, 40, 4999):
        for value in (torch.nan, torch.inf):
            p = torch.linspace(-1, -0.5, 5000)
            p[at] = value
            found = run(extremes, [[p]], {}, fused)
            assert found is not None
            assert found.isnan().all() if value != value else (found == torch.inf).all()


def test_the_number_of_threads_changes_no_bit() -> None:
    lists = tensors(F32)
    scalars = dict(a=0.7, b=0.2, ok=torch.tensor(True))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(sums, lists, scalars, True, maxima=2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_sums_are_more_exact_than_the_precision_of_the_tensors() -> None:
    """Float32 throughout would lose a unit in 2^24; here a few thousand are added before the sum goes on in float64."""

    def total(p: Tensor) -> tuple[Tensor, ...]:
        return (p.sum(),)

    p = torch.rand(3_000_001, generator=torch.Generator().manual_seed(0))
    found = run(total, [[p]], {}, True)
    assert found is not None
    assert found.item() == pytest.approx(p.double().sum().item(), rel=2e-7)


@pytest.mark.parametrize("maxima", [0, 2])
def test_a_large_tensor_is_taken_in_blocks_where_nothing_is_fused(monkeypatch: pytest.MonkeyPatch, maxima: int) -> None:
    kernel = sums if maxima else arithmetic_
    scalars = dict(a=0.7, b=0.2, ok=torch.tensor(True))
    ends = []
    for block in (1 << 30, 1000):
        monkeypatch.setattr(_foreach, "BLOCK", block)
        lists = tensors(F64)
        lists[2][5] = torch.randn(2, 1 << 16, dtype=F64, generator=torch.Generator().manual_seed(2))[:, ::2].reshape(-1)
        found = run(kernel, lists, scalars, False, maxima)
        ends.append([*lists[0], *lists[2], *([] if found is None else [found])])
    for whole, parts in zip(*ends, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-9)


# -- the tape ------------------------------------------------------------------------------------------------------


def test_a_tape_says_what_is_done_once_for_each_element_and_at_the_end() -> None:
    def kernel_(p: Tensor, g: Tensor, k: Tensor, *, a: Tensor, none: None) -> tuple[Tensor, ...]:
        p.sub_(g * (a * k))
        return (squared_norm(p),)

    tape = record(
        kernel_, [Column(F32, True), Column(torch.bfloat16, True), Column(F64, False)], {"a": F64, "none": None}
    )
    assert [(op.word, op.dtype) for op in tape.at(BEFORE)] == [("mul", F64)]
    assert [op.word for op in tape.at(INSIDE)] == ["mul", "sub", "mul", "sum"]
    assert [op.word for op in tape.at(AFTER)] == ["sqrt", "mul"]
    assert list(tape.stores) == [0]
    assert tape.touched == [0, 1]


def two_passes_(p: Tensor) -> None:
    p.div_(p.sum())


def unknown_(p: Tensor) -> None:
    p.copy_(torch.sinh(p))


def shared_(p: Tensor, *, a: Tensor) -> None:
    a.mul_(2)


def numbers_(p: Tensor, k: Tensor) -> None:
    k.mul_(2)


@pytest.mark.parametrize(
    ("kernel", "scalars", "message"),
    [
        (two_passes_, {}, r"^two_passes_ takes two passes"),
        (unknown_, {}, r"^unknown_: sinh .* not in the vocabulary"),
        (shared_, {"a": F64}, r"^shared_ writes to a"),
        (numbers_, {}, r"^numbers_ writes to argument 1, which is a number"),
    ],
)
def test_what_no_loop_over_elements_can_do_is_refused(kernel: Callable[..., Any], scalars: Any, message: str) -> None:
    columns = [Column(F32, True), *([Column(F32, False)] if kernel is numbers_ else [])]
    with pytest.raises(NotImplementedError, match=message):
        record(kernel, columns, scalars)


# -- the first step --------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs made from here on."""
    names: list[str] = []
    make = _c.Program.__init__

    def note(self: Any, tape: Any) -> None:
        names.append(tape.name)
        make(self, tape)

    monkeypatch.setattr(_c.Program, "__init__", note)
    _fused._program.cache_clear()
    return names


@pytest.mark.filterwarnings("ignore:.*hardly moves")
@pytest.mark.parametrize("cls", [CoolMomentum, MomentumKOALA, ArTuRO])
def test_a_thousand_steps_make_each_program_once(cls: Any, made: list[str], tmp_path: Path) -> None:
    """With a schedule, a gradient that comes and goes, two groups, a group that joins, a resumed checkpoint."""
    ps = [nn.Parameter(torch.randn(s)) for s in ((3, 4), (5,), (2, 2, 2))]
    groups = [{"params": ps[:2]}, {"params": ps[2:], "lr": 1e-4}]
    optimizer = cls(copy.copy(groups), lr=1e-3, skip_nonfinite=True, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    loss = torch.tensor(1.0)

    def step(i: int) -> None:
        for k, p in enumerate(ps):
            p.grad = None if k == 1 and i % 3 == 0 else torch.full_like(p, 1e-3)
        optimizer.step(loss=loss) if cls is MomentumKOALA else optimizer.step()
        scheduler.step()

    step(0)
    step(1)
    first = sorted(made)
    assert len(set(first)) == len(first) > 0
    for i in range(1000):
        if i == 300:
            state = optimizer.state_dict()
            optimizer = cls(copy.copy(groups), lr=1e-3, skip_nonfinite=True, fused=True)
            optimizer.load_state_dict(state)
            scheduler.optimizer = optimizer
        if i == 500:
            ps.append(nn.Parameter(torch.randn(70_000)))
            optimizer.add_param_group({"params": ps[-1:]})
            scheduler.base_lrs.append(1e-3)
        step(i)
    assert sorted(made) == first


def test_a_library_is_compiled_once_for_all_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: list[str]
) -> None:
    """In a folder whose name has a blank."""
    folder = tmp_path / "a cache"
    monkeypatch.setenv("FALLLINE_CACHE", str(folder))
    _cache.folder.cache_clear()
    try:
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        CoolMomentum([p], fused=True).step()
        (library,) = folder.glob("*.so")
        assert made == ["cool_"]

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("compiled again")

        monkeypatch.setattr(subprocess, "run", refuse)
        _fused._program.cache_clear()
        CoolMomentum([p], fused=True).step()
        assert made == ["cool_", "cool_"]
        assert [library] == list(folder.iterdir())
    finally:
        _cache.folder.cache_clear()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: list[str]) -> Iterator[Path]:
    """An empty folder for libraries; no program is known."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FALLLINE_CACHE", str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    for kept in (_cache.folder, _cache.spare, _c._compiler, _fused._program):
        kept.cache_clear()


def cool() -> list[float]:
    """What three weights are after a fused step with gradients of 1."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    CoolMomentum([p], lr=0.5, rho_0=0.0, fused=True).step()
    return p.tolist()


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "removed"])
def test_a_damaged_library_is_made_again(cache: Path, damage: str) -> None:
    """In a process of its own the loader would read beyond the end of the file, and the system would end it."""
    assert cool() == [0.75] * 3
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "changed": whole[:-9] + b"x" + whole[-8:]}
    library.unlink()  # it is loaded here
    if damage in damaged:
        library.write_bytes(damaged[damage])
    forget()
    assert cool() == [0.75] * 3
    assert whole in [path.read_bytes() for path in cache.iterdir()]


def test_where_the_cache_cannot_be_written_there_is_another(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FALLLINE_CACHE", str(tmp_path / "file" / "cache"))
    assert _cache.folder().is_dir()
    assert _cache.folder() != tmp_path / "file" / "cache"
    assert cool() == [0.75] * 3


def test_a_cache_that_fills_up_or_goes_away_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _cache.folder() == cache
    cache.rmdir()
    assert cool() == [0.75] * 3
    assert not cache.exists()
    make = _cache._made

    def full(folder: Path, *args: Any) -> Path:
        if folder == cache:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(folder, *args)

    forget()
    monkeypatch.setattr(_cache, "_made", full)
    assert cool() == [0.75] * 3
    assert list(cache.glob("*")) == []

    forget()
    monkeypatch.setattr(_cache, "_made", lambda *args: full(cache))
    with pytest.raises(RuntimeError, match=r"^fused=True cannot keep or load .*No space left.*FALLLINE_CACHE"):
        cool()


def test_a_library_that_may_not_be_loaded_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(RuntimeError, match=r"failed to map segment.*FALLLINE_CACHE"):
        cool()


def compiler(path: Path) -> str:
    """A compiler at a place of its own, which writes down what it is called with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    path.write_text(f'#!/bin/sh\necho "$@" >> "$0.log"\nexec {real} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_cc_may_have_flags_a_launcher_quotes_and_blanks(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, blank = compiler(tmp_path / "mycc"), compiler(tmp_path / "a place" / "mycc")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    commands = ["mycc", "mycc -pipe", f"  {plain} -pipe -DNAME='a b'", blank, f"'{blank}' -pipe", "env A=1 mycc -pipe"]
    for i, command in enumerate(commands, 1):
        monkeypatch.setenv("CC", command)
        _fused._program.cache_clear()
        assert cool() == [0.75] * 3
        assert len(list(cache.iterdir())) == i  # the command is part of what a library is known by
    log = Path(f"{plain}.log").read_text().splitlines()
    assert [line.startswith("-pipe") for line in log] == [False, True, True, True]
    assert "-DNAME=a b" in log[2]
    assert len(Path(f"{blank}.log").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("mycc", r"CC='mycc' is none: there is no program 'mycc'"),
        ("mycc -pipe", r"CC='mycc -pipe' is none: there is no program 'mycc'"),
        ("'mycc", r"is none: No closing quotation"),
        ("''", r"is none: there is no program ''"),
        ("env mycc", r"The one that is there, \S*env mycc, fails"),
        ("cc --no-such-flag", r"cc --no-such-flag, fails:\n.*no-such-flag"),
        ("true", r"true, fails:\nit ends with 0 and says nothing"),
    ],
)
def test_a_cc_that_is_no_compiler_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(RuntimeError, match=rf"(?s)^fused=True needs a C compiler.*{message}"):
        cool()
    assert list(cache.glob("*")) == []


def test_without_a_compiler_one_sentence_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"^fused=True needs a C compiler, and there is none: install gcc or clang"):
        CoolMomentum([p], fused=True).step()
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(RuntimeError, match=r"install gcc .*The one that is there, /bin/false, fails"):
        CoolMomentum([p], fused=True).step()
    assert p.tolist() == [1.0] * 3


def test_a_device_without_an_engine_is_refused() -> None:
    p = nn.Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match=r"not for 'meta'"):
        CoolMomentum([p], fused=True).step()


# -- Triton ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["interpret", "compile"])
def test_triton_does_the_same_and_compiles_for_a_gpu(part: str, tmp_path: Path) -> None:
    """In Triton's interpreter, on the CPU; and to machine code for a GPU that need not be there."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    environment = os.environ | {"FALLLINE_CACHE": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)}
    if part == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(HERE / "on_triton.py"), part], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_triton_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"^fused=True needs Triton on a GPU.*pip install triton"):
        _triton.Program(record(two_pass_free, [Column(F32, True)], {}))


def two_pass_free(p: Tensor) -> tuple[Tensor, ...]:
    return (p.sum(),)
