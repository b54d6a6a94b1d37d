"""All kernels on Triton without a GPU: run in its interpreter, or compiled to machine code. See test_fused.py."""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from adagrad_norm import AdaGradNorm
from adan import Adan
from lion import Lion
from vocabulary import spoken

import fallline
from fallline import _optimizer, coolmomentum
from fallline._engine import fused as _fused
from fallline._engine import triton as _triton
from fallline._engine.run import run
from fallline._engine.tape import SALT, Column, record
from fallline.arturo import _curvature, arturo
from fallline.koala import base as koala
from fallline.koala import metric as koala_metric
from fallline.koala import momentum as koala_m
from fallline.koala import plus_plus as koala_pp
from fallline.koala import vanilla as koala_v
from fallline.lodo import lodo

F32, F64, BOOL = torch.float32, torch.float64, torch.bool
METHODS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (fallline.CoolMomentum, dict(skip_nonfinite=True, weight_decay=0.1)),
    (fallline.CoolMomentum, dict(skip_nonfinite=True, weight_decay=0.1, decoupled=True)),
    (fallline.VanillaKOALA, dict(weight_decay=0.1)),
    (fallline.MomentumKOALA, {}),
    (fallline.KOALAPlusPlus, dict(weight_decay=0.01)),
    (fallline.ArTuRO, dict(lr=0.01)),
]
ONCE: list[tuple[Callable[..., Any], dict[str, Any]]] = [  # in one precision: the interpreter is slow
    (fallline.ArTuRO, dict(lr=0.01, newton_iters=2, weight_decay=0.1, intercept_init="centred", scope="tensor")),
    (fallline.OrthogonalKOALA, dict(weight_decay=0.1)),
    (fallline.ArTuRO, dict(lr=0.01, weight_decay=0.1, curvature="second-moment")),
    (Lion, dict(lr=0.01, weight_decay=0.1)),
    (Adan, dict(lr=0.01, skip_nonfinite=True)),
    (AdaGradNorm, dict(lr=0.1, skip_nonfinite=True)),
]


def interpret() -> None:
    """Five steps of each method, one of them with a NaN, fused in the interpreter and eager."""
    _triton.BLOCK = 256

    @functools.cache
    def program(kernel: Any, columns: Any, types: Any, device: str) -> Any:
        return _triton.Program(record(kernel, columns, dict(types)))

    _fused._program = program
    p, g = torch.randn(3000).bfloat16(), torch.randn(3000)
    g[:3] = torch.tensor([torch.nan, torch.inf, 0.0])
    ends = [p.clone(), p.clone()]
    for fused, end in zip((False, True), ends, strict=True):
        run(lodo.move_, [[end], [g]], dict(shrink=None, lr=0.1), fused, salt=torch.tensor(2**33 + 5))
    assert torch.equal(ends[0].nan_to_num(), ends[1].nan_to_num())
    assert torch.equal(ends[0].isnan(), ends[1].isnan())
    ps, gs = ([make(300, dtype=F64), make(7, 5, dtype=F64)] for make in (torch.randn, torch.rand))
    torch.testing.assert_close(run(spoken, [ps, gs], {}, True), run(spoken, [ps, gs], {}, False))
    for dtype, near in ((F64, 1e-11), (F32, 1e-4), (torch.bfloat16, 0.1)):  # the interpreter cuts bfloat16 off
        for cls, settings in METHODS + (ONCE if dtype == F32 else []):
            ends = []
            for fused in (False, True):
                generator = torch.Generator().manual_seed(0)
                ps = [
                    torch.randn(shape, generator=generator, dtype=F64).to(dtype).requires_grad_()
                    for shape in ((7, 5), (300,), (), (1024,), (1, 1))
                ]
                optimizer = cls(ps, **settings, fused=fused)
                for t in range(5):
                    for p in ps:
                        p.grad = torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) * 0.1
                    ps[1].grad = None if t == 1 else torch.full_like(ps[1], torch.nan) if t == 2 else ps[1].grad
                    extra = {"loss": torch.tensor(0.5 + t)} if isinstance(optimizer, koala.KOALA) else {}
                    optimizer.step(**extra)
                assert optimizer.skipped.item() == 1
                ends.append([p.detach().double() for p in ps])
            for eager, fused in zip(*ends, strict=True):
                torch.testing.assert_close(eager, fused, rtol=near, atol=near)


def kernels(weights: torch.dtype) -> Iterator[tuple[Any, list[Column], dict[str, torch.dtype | None]]]:
    """Every kernel of the library, with as many of its arguments as it has."""
    state = F64 if weights == F64 else F32
    P, S, K, N, B = (
        Column(weights, True),
        Column(state, True),
        Column(state, False),
        *(Column(d, False, True) for d in (F64, BOOL)),
    )
    yield _optimizer.squared_norms, [P, P], {}
    yield coolmomentum.cool_, [P, P, S], dict(rho=F64, a=F64, coupled=F64, shrink=F64, move=F64, ok=BOOL)
    yield coolmomentum._virial, [P, P, S], dict(weight_decay=F64, shrink=F64)
    yield koala.norms, [P, P], dict(weight_decay=F64)
    yield koala_v.correct_, [P, P, N], dict(weight_decay=F64, ok=BOOL)
    yield koala_m.correct_and_drift_, [P, P, S, N, N, S, N], dict(weight_decay=F64, a=F64, move=F64, ok=BOOL)
    yield koala_m.drift_, [P, S], {}
    yield koala_m.retreat_, [P, S], {}
    yield koala_m.squared_distance, [P, S, S], dict(drifted=F64)
    yield koala_pp.products, [P, P, S, S], dict(weight_decay=F64)
    yield koala_pp.correct_, [P, P, S, S, N, N, N, N, B], dict(q=F64, weight_decay=F64, ok=BOOL)
    known = dict(beta=F64, ok=BOOL)
    yield koala_metric.average_, [P, P, S], dict(share=F64, ok=BOOL)
    yield koala_metric.average_twice_, [P, P, S, S], dict(share=F64, share2=F64, ok=BOOL)
    yield koala_metric.length, [P, P, S, N], known
    yield koala_metric.adam_slope, [P, P, S, N, S, N], dict(eps=F64, **known)
    yield koala_metric.move_, [P, P, S, N], dict(distance=F64, shrink=F64, **known)
    yield koala_metric.adam_move_, [P, P, S, N, S, N], dict(distance=F64, shrink=F64, eps=F64, **known)
    yield koala_metric.move_along_, [P, S], dict(distance=F64, shrink=F64)
    names = ("shrink", "start", "q", "q_quad", "r", "c", "floor", "per_radius", "less")
    yield _curvature.rls_observe_, [P, P, S, S, S, S, S, S, K], {**dict.fromkeys(names, F64), "ok": BOOL}
    names = ("shrink", "c", "floor", "per_radius", "less")
    yield _curvature.second_moment_observe_, [P, P, S, S, S, N, N], {**dict.fromkeys(names, F64), "ok": BOOL}
    for secular, move_ in arturo.KERNELS.values():
        yield secular, [P, S, S, S, N], dict(shrink=F64, c=F64, floor=F64)
        yield move_, [P, S, S, S, N, N], dict(shrink=F64, c=F64, floor=F64, kappa=F64, nu=F64, ok=BOOL)
    yield lodo.move_, [P, S], dict(shrink=F64, lr=F64)
    yield spoken, [P, S], {}
    if weights == torch.bfloat16:
        yield lodo.move_, [P, S], {"shrink": F64, "lr": F64, SALT: torch.int64}


def compile_all() -> None:
    """To machine code of compute capability 9.0; aligned whole blocks are read sixteen bytes at a time."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {F64: "*fp64", F32: "*fp32", BOOL: "*i8"}
    for weights in (F32, torch.bfloat16):
        for kernel, columns, scalars in kernels(weights):
            module = _triton.Program(record(kernel, columns, scalars)).module
            for masked in (False, True):
                shape = {"BLOCK": 2048, "ALIGNED": True, "MASKED": masked}
                for name in ("work", "finish") if masked and hasattr(module, "finish") else ("work",):
                    function = getattr(module, name)
                    signature = {}
                    for argument in function.arg_names:
                        if argument in shape:
                            signature[argument] = "constexpr"
                        elif argument in ("scalars", "partials", "sums"):
                            signature[argument] = "*fp64"
                        elif argument[0] == "v":
                            signature[argument] = types[columns[int(argument[1:])].dtype]
                        else:
                            signature[argument] = "i32" if argument == "n" else "*i64"
                    constants = {(i,): shape[a] for i, a in enumerate(function.arg_names) if a in shape}
                    built = build(ASTSource(function, signature, constants), target=GPUTarget("cuda", 90, 32))
                    assert len(built.asm["cubin"]) > 1000
                    if not masked:
                        assert "ld.global.v4" in built.asm["ptx"], kernel


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of numpy, on 0 / 0 in lanes that are masked
    {"interpret": interpret, "compile": compile_all}[sys.argv[1]]()
