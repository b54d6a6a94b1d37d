"""What test_distributed.py runs: cases that give the same numbers on one rank, on two and on four.

One group of four processes runs them all, for its start is what takes long. Cases on two ranks are dealt to its two
pairs, which work side by side: so each of these tells its optimizer the group (`set_process_group`).
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from problem import Net, start
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from fallline import (
    LODO,
    ArTuRO,
    CoolMomentum,
    KOALAPlusPlus,
    MetricKOALA,
    MomentumKOALA,
    Optimizer,
    OrthogonalKOALA,
    VanillaKOALA,
)
from fallline._loss import LossAware

Result = dict[str, Any]

STEPS = 5
BROKEN_STEP = 2

# Slopes that differ much, so that the multiplier's lower bound without Newton is the maximum over single weights.
UNEVEN = dict(filter_var_init=10.0, process_noise=1e-4, process_noise_quad=10.0, measurement_noise=0.01, var_init=1.0)


def halves(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups."""
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]


def centred(h: Tensor) -> Tensor:
    """A direction that needs all of a tensor: a shard's mean is another."""
    return h - h.mean()


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "V": partial(VanillaKOALA, weight_decay=0.01),
    "M": partial(MomentumKOALA, weight_decay=0.01, average_init="zeros"),
    "++": partial(KOALAPlusPlus, weight_decay=0.01),
    "orthogonal": partial(OrthogonalKOALA, weight_decay=0.01, q=1e-2),
    "two metrics": lambda params, **more: MetricKOALA(
        [{"params": params[::2], "metric": "identity"}, {"params": params[1::2], "lr": 0.3}], q=1e-2, **more
    ),
    "any metric": partial(MetricKOALA, metric=centred, q=1e-2),
    "++ vanilla": partial(KOALAPlusPlus, symmetric=False),
    "cool": partial(CoolMomentum, lr=0.05, cool_steps=9, weight_decay=0.01, skip_nonfinite=True),
    "arturo": partial(ArTuRO, lr=0.05, weight_decay=0.01),
    "arturo newton": partial(ArTuRO, lr=0.05, newton_iters=2),
    "arturo bisect": partial(ArTuRO, lr=0.05, solver="bisect"),
    "arturo start": partial(ArTuRO, lr=1.0, **UNEVEN),
    "arturo groups": lambda params, **more: ArTuRO(halves(params), lr=0.05, weight_decay=0.01, **more),
    "arturo a group": lambda params, **more: ArTuRO(halves(params), lr=0.05, scope="group", **more),
    "arturo a tensor": partial(ArTuRO, lr=0.05, scope="tensor"),
    "arturo second moment": partial(ArTuRO, lr=0.05, weight_decay=0.01, curvature="second-moment"),
    "lodo": partial(LODO, lr=0.1, meta_lr=0.01, depth=4, weight_decay=0.01),
    "lodo buckets": partial(LODO, lr=0.1, meta_lr=0.01, depth=2, bucket_size=8),
    "lodo diagonal": partial(LODO, lr=0.1, meta_lr=0.01, preconditioner="diagonal", meta_optimizer="sgd"),
}
KOALAS = ["V", "M", "++"]
FUSED = ["V", "M", "++", "orthogonal", "cool", "arturo", "arturo a tensor"]
ONE_EACH = ["V", "M", "++", "orthogonal", "cool", "arturo", "lodo buckets"]
# Over shards, in every step.
SUMMING = ["V", "M", "++", "two metrics", "arturo", "arturo start", "arturo a tensor"]
IN_PARTS = [*ONE_EACH, "any metric", "++ vanilla", "arturo start"]
STATES = [*ONE_EACH, "arturo a group", "lodo", "arturo second moment"]
FORMS = ["loss", "observe", "attach", "closure", "stages"]
OPTIONS: dict[str, dict[str, Any]] = {
    "gradients in buckets": dict(gradient_as_bucket_view=True),
    "unused weight": dict(find_unused_parameters=True),
    "static graph": dict(static_graph=True),
}


@dataclass(frozen=True)
class Ranks:
    """The processes that a case runs on; by default one alone."""

    rank: int = 0
    size: int = 1
    group: "dist.ProcessGroup | None" = None  # None: alone, or all
    mesh: DeviceMesh | None = field(default=None, repr=False)  # [size]
    grid: DeviceMesh | None = field(default=None, repr=False)  # four ranks as [2, 2]
    number: int = 0  # of the pair
    folder: str = ""  # for files

    def share(self, n: int = 8) -> slice:
        """This rank's examples of a batch of ``n``."""
        each = n // self.size
        return slice(each * self.rank, each * (self.rank + 1))


ALONE = Ranks()


@dataclass(frozen=True)
class Case:
    """Something to run on several ranks, and what must come out."""

    run: Callable[[Ranks], Result]
    size: int = 2
    alone: Callable[[Ranks], Result] | None = None  # the same in one process, where it is not ``run``
    both: bool = False  # on both pairs at once


# -- a step -------------------------------------------------------------------------------------------------------


def step(
    optimizer: Optimizer,
    parts: list[Callable[[], Tensor]],
    form: str = "loss",
    objective: Callable[[Tensor], Tensor] = Tensor.mean,
    not_yet: Callable[[], Any] = contextlib.nullcontext,
    before: Callable[[], None] = lambda: None,
) -> None:
    """One step: ``parts`` are micro-batches, and return one loss per example.

    Args:
        form: how the optimizer learns the loss.
        objective: what backward is called on, of one part's losses.
        not_yet: the context of all parts but the last.
        before: called between backward and the step.
    """

    def backward() -> Tensor:
        optimizer.zero_grad()
        kept = []
        for i, part in enumerate(parts):
            with contextlib.nullcontext() if i + 1 == len(parts) else not_yet():
                losses = part()
                if form == "observe" and isinstance(optimizer, LossAware):
                    losses = optimizer.observe(losses)
                (objective(losses) / len(parts)).backward()
            kept.append(losses.detach())
        before()
        return torch.cat(kept)

    if form == "stages":
        optimizer.predict()
        optimizer.update(backward())
    elif form == "closure":
        optimizer.step(backward)
    else:
        losses = backward()
        optimizer.step(**({"loss": losses} if form == "loss" else {}))


def outcome(parameters: list[Tensor], optimizer: Optimizer) -> Result:
    """Weights, whole, and every shared scalar."""
    numbers = {k: float(v) for k, v in optimizer.param_groups[0].items() if isinstance(v, Tensor) and v.dim() == 0}
    if isinstance(optimizer, ArTuRO):
        numbers |= {f"eta{i}": float(x) for i, x in enumerate(optimizer.eta.reshape(-1))}
        numbers |= {f"kl{i}": float(x) for i, x in enumerate(optimizer.kl.reshape(-1))}
    return {"parameters": [whole(p) for p in parameters], "numbers": numbers}


def whole(p: Tensor) -> Tensor:
    """All of a tensor, copied."""
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


def belongs_to(optimizer: Optimizer, ranks: Ranks) -> Optimizer:
    """Tell it which ranks share the batch, where these are not all."""
    if ranks.group is not None and isinstance(optimizer, LossAware):
        optimizer.set_process_group(ranks.group)
    return optimizer


@contextlib.contextmanager
def without(what: str) -> Iterator[None]:
    """Leave out a reduction over ranks: of the "loss", or of the sums over "shards"."""
    if what == "loss":
        with mock.patch("fallline._loss.mean_over_ranks", lambda t, group=None: t):
            yield
    elif what == "shards":
        with mock.patch("fallline._optimizer.over_shards", lambda rows, params, maxima=0: rows):
            yield
    else:
        yield


# -- DDP ----------------------------------------------------------------------------------------------------------


class Idle(Net):
    """With a weight that takes no part."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))


def ddp(
    method: str,
    ranks: Ranks,
    *,
    form: str = "loss",
    dtype: torch.dtype = torch.float64,
    micro: int = 1,
    left_out: str = "",
    broken: str = "",
    net: type[Net] = Net,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    data: int = 0,
    **settings: Any,
) -> Result:
    """Train under DistributedDataParallel; each rank has its share of the batch, in ``micro`` micro-batches."""
    module = net(form="dict" if form == "attach" else "plain", parameters=start(seed, dtype))
    parameters = list(module.parameters())
    optimizer = belongs_to(OPTIMIZERS[method](parameters, **settings), ranks)
    if form == "attach":
        optimizer.attach(module)
    elif form == "passes":
        optimizer.attach()
    model = module
    if ranks.size > 1:
        model = nn.parallel.DistributedDataParallel(module, process_group=ranks.group, **(options or {}))
    share = ranks.share()
    each = (share.stop - share.start) // micro
    examples = [slice(share.start + i * each, share.start + (i + 1) * each) for i in range(micro)]

    def part(t: int, chosen: slice) -> Tensor:
        output = model(t + 1000 * data, chosen)
        losses: Tensor = output["loss"] if form == "attach" else output
        # one of the first rank's examples, or of the only one's
        return losses * math.nan if broken == "loss" and t == BROKEN_STEP and chosen.start == 0 else losses

    with without(left_out):
        for t in range(STEPS):
            parts = [partial(part, t, chosen) for chosen in examples]
            not_yet = model.no_sync if ranks.size > 1 else contextlib.nullcontext
            step(optimizer, parts, form, not_yet=not_yet)
    return outcome(parameters, optimizer)


def uneven(method: str, ranks: Ranks, *, form: str, by_count: bool, first: int = 5) -> Result:
    """Batches of 8 of which the first rank has ``first``.

    Args:
        by_count: weigh each example alike, else the mean of the ranks' means is what DDP makes of it.
    """
    net = Net()
    parameters = list(net.parameters())
    optimizer = belongs_to(OPTIMIZERS[method](parameters), ranks)
    model = net if ranks.size == 1 else nn.parallel.DistributedDataParallel(net, process_group=ranks.group)
    cuts = [slice(first), slice(first, 8)]
    for t in range(STEPS):
        if ranks.size > 1:
            parts = [partial(model, t, cuts[ranks.rank])]
        elif by_count:
            parts = [partial(model, t)]
        else:
            parts = [partial(model, t, cut) for cut in cuts]
        step(optimizer, parts, form, lambda losses: losses.sum() * ranks.size / 8 if by_count else losses.mean())
    return outcome(parameters, optimizer)


# -- shards -------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Some positions of some features to one number: tensors of 6, 8, 3 and 1 rows.

    On four ranks some shards are empty, and those of 3 and 6 rows are uneven.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 1)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[examples, 4 positions, 6 features] to [examples, 4]."""
        y: Tensor = self.head(torch.tanh(self.down(torch.tanh(self.up(self.norm(x))))))
        return y.squeeze(-1)


def data_of(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Batch ``t``: inputs [8, 4, 6] and wanted outputs [8, 4]."""
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 4, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[..., 0] - x[..., 1].sin()).to(dtype)


def spread(model: nn.Module, way: str, ranks: Ranks) -> Ranks:
    """Spread a model over the ranks; returns who shares the batch."""
    if ranks.size == 1:
        return ranks
    parts = [model.up, model]
    plan = {
        "norm": SequenceParallel(),  # replicated, over positions of which each rank has its own
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }  # the head stays a plain tensor
    if way == "tp":
        parallelize_module(model, ranks.mesh, plan)
        return Ranks(group=ranks.group)
    if way == "fsdp+tp":
        dp, tp = ranks.grid["dp"], ranks.grid["tp"]
        parallelize_module(model, tp, plan)
        for module in parts:
            fully_shard(module, mesh=dp)
        return Ranks(dp.get_local_rank(), dp.size())
    options: dict[str, Any] = {}
    if way == "half":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if way == "offload":
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    for module in parts:
        fully_shard(module, mesh=ranks.grid if way == "hsdp" else ranks.mesh, **options)
    return ranks


def positions(x: Tensor, way: str, ranks: Ranks) -> Tensor:
    """The positions that this rank has under sequence parallelism."""
    if ranks.size == 1 or "tp" not in way:
        return x
    mesh = ranks.mesh if way == "tp" else ranks.grid["tp"]
    return x.chunk(mesh.size(), 1)[mesh.get_local_rank()]


def sharded(
    method: str,
    ranks: Ranks,
    *,
    way: str = "fsdp",
    form: str = "loss",
    dtype: torch.dtype = torch.float64,
    left_out: str = "",
    broken: str = "",
    **settings: Any,
) -> Result:
    """Train a model whose tensors lie in pieces.

    Args:
        broken: NaN in one rank's "loss", which backward spreads over all shards, or in a "gradient" in one shard only.
    """
    model = Layers(dtype)
    share = spread(model, way, ranks)
    parameters = list(model.parameters())
    optimizer = belongs_to(OPTIMIZERS[method](parameters, **settings), ranks)
    if form == "passes":
        optimizer.attach()
    with without(left_out):
        go_on(model, optimizer, range(STEPS), way, ranks, share, form, broken)
    return outcome(parameters, optimizer)


def go_on(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range,
    way: str = "fsdp",
    ranks: Ranks = ALONE,
    share: Ranks | None = None,
    form: str = "loss",
    broken: str = "",
) -> None:
    """Train for some steps."""
    share = share or ranks
    for t in steps:
        x, y = (part[share.share()] for part in data_of(t, next(model.parameters()).dtype))
        breaks = broken if t == BROKEN_STEP else ""

        def part(x: Tensor = x, y: Tensor = y, breaks: str = breaks) -> Tensor:
            losses = (model(positions(x, way, ranks)) - y).square().mean(1)
            return losses * math.nan if breaks == "loss" and share.rank == 0 else losses

        def spoil(breaks: str = breaks) -> None:
            g = model.up.weight.grad
            mine = g.to_local() if isinstance(g, DTensor) else g
            if breaks == "gradient" and ranks.rank == ranks.size - 1:
                mine[-1, 0] = math.nan

        step(optimizer, [part], form, before=spoil)


# -- checkpoints ----------------------------------------------------------------------------------------------------

BEFORE, AFTER = range(3), range(3, 6)


def made(method: str, ranks: Ranks, *, seed: int = 0) -> tuple[nn.Module, Optimizer]:
    """A model under FSDP2 and its optimizer; weights of its own by ``seed``."""
    model = Layers(seed=seed)
    spread(model, "fsdp", ranks)
    return model, belongs_to(OPTIMIZERS[method](list(model.parameters())), ranks)


def never_stopped(method: str, ranks: Ranks, *, before: range = BEFORE) -> Result:
    """The run that the others must equal."""
    model, optimizer = made(method, ranks)
    go_on(model, optimizer, before, ranks=ranks)
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def state_of(model: nn.Module, optimizer: Optimizer, options: sd.StateDictOptions) -> dict[str, Any]:
    """Of both."""
    weights, state = sd.get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": state}


def saved(
    method: str, ranks: Ranks, *, to: str, before: range = BEFORE, flat: bool = False, away: bool = False
) -> Result:
    """Train, save with torch.distributed.checkpoint, go on. ``away``: at the filtered point of eval()."""
    model, optimizer = made(method, ranks)
    go_on(model, optimizer, before, ranks=ranks)
    if away:
        optimizer.eval()
    state = state_of(model, optimizer, sd.StateDictOptions(flatten_optimizer_state_dict=flat))
    dcp.save(state, checkpoint_id=f"{ranks.folder}/{to}", process_group=ranks.group, no_dist=ranks.size == 1)
    if away:
        optimizer.train()
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def resumed(method: str, ranks: Ranks, *, of: str, flat: bool = False, away: bool = False) -> Result:
    """Load what :func:`saved` left, on whatever number of ranks, and go on."""
    model, optimizer = made(method, ranks, seed=1)
    options = sd.StateDictOptions(flatten_optimizer_state_dict=flat)
    state = state_of(model, optimizer, options)
    dcp.load(state, checkpoint_id=f"{ranks.folder}/{of}", process_group=ranks.group, no_dist=ranks.size == 1)
    sd.set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )
    if away:
        optimizer.train()
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def handed_out(method: str, ranks: Ranks, *, before: range = BEFORE) -> Result:
    """Collect everything whole on the first rank, and hand it out again to a fresh model and optimizer."""
    model, optimizer = made(method, ranks)
    go_on(model, optimizer, before, ranks=ranks)
    state = state_of(model, optimizer, sd.StateDictOptions(full_state_dict=True, cpu_offload=True))
    if ranks.rank == 0:
        torch.save(state, f"{ranks.folder}/{method} {len(before)}.pt")
    model, optimizer = made(method, ranks, seed=1)
    options = sd.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    sd.set_model_state_dict(model, state["model"], options=options)
    sd.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def taken_in(method: str, ranks: Ranks, *, before: range = BEFORE) -> Result:
    """Load the whole state that :func:`handed_out` left, and go on."""
    state = torch.load(f"{ranks.folder}/{method} {len(before)}.pt")
    model, optimizer = made(method, ranks, seed=1)
    options = sd.StateDictOptions(full_state_dict=True)
    sd.set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def loaded_everywhere(ranks: Ranks) -> Result:
    """Give each rank the first one's state of KOALA-V, which is numbers alone."""
    model, optimizer = made("V", ranks)
    go_on(model, optimizer, BEFORE, ranks=ranks)
    state = optimizer.state_dict()
    weights = sd.get_model_state_dict(model)
    model, optimizer = made("V", ranks, seed=1)
    sd.set_model_state_dict(model, weights)
    optimizer.load_state_dict(state)
    go_on(model, optimizer, AFTER, ranks=ranks)
    return outcome(list(model.parameters()), optimizer)


def size_of_state(ranks: Ranks) -> Result:
    """Numbers in LODO's state on this rank."""
    _, optimizer = made("lodo", ranks)
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return {"parameters": [], "numbers": {"size": sum(t.numel() for t in tensors)}}


# -- the filtered point ---------------------------------------------------------------------------------------------


def evaluated(how: str, ranks: Ranks) -> Result:
    """Train KOALA-M, and evaluate at the filtered point after every step.

    Args:
        how: the model is followed ("follow"); or the root is resharded after a pass by itself ("posterior") or by hand
            ("reshard").
    """
    model = Layers()
    if ranks.size > 1:
        fully_shard(model.up, mesh=ranks.mesh)
        fully_shard(model, mesh=ranks.mesh, reshard_after_forward=True if how == "posterior" else None)
    parameters = list(model.parameters())
    optimizer = belongs_to(MomentumKOALA(parameters), ranks)
    if how == "follow":
        optimizer.follow(model)
    seen = {}
    x, y = data_of(100)
    for t in range(STEPS):
        go_on(model, optimizer, range(t, t + 1), ranks=ranks)
        model.eval()
        with torch.no_grad(), contextlib.nullcontext() if how == "follow" else optimizer.posterior():
            seen[f"evaluation {t}"] = float((model(x) - y).square().mean())
        model.train()
        if how == "reshard" and isinstance(model, FSDPModule):
            model.reshard()
    optimizer.train()
    result = outcome(parameters, optimizer)
    return result | {"numbers": result["numbers"] | seen}


# -- ranks that do not share everything ------------------------------------------------------------------------------


def by_itself(method: str, ranks: Ranks, *, number: int | None = None) -> Result:
    """A model of each rank's own, with its own start and data."""
    number = ranks.rank if number is None else number
    net = Net(parameters=start(number))
    parameters = list(net.parameters())
    optimizer = OPTIMIZERS[method](parameters)
    if isinstance(optimizer, LossAware):
        optimizer.set_process_group(None)
    for t in range(STEPS):
        step(optimizer, [partial(net, t + 1000 * number)])
    return outcome(parameters, optimizer)


def in_pairs(method: str, ranks: Ranks, *, number: int | None = None) -> Result:
    """A model of each pair's own."""
    number = ranks.number if number is None else number
    return ddp(method, ranks, seed=number, data=number)


# -- all of them ----------------------------------------------------------------------------------------------------


def _cases() -> dict[str, Case]:
    cases = {}
    for m in OPTIMIZERS:
        cases[f"ddp {m}"] = Case(partial(ddp, m))
        cases[f"ddp {m}, float32"] = Case(partial(ddp, m, dtype=torch.float32))
        cases[f"fsdp {m}"] = Case(partial(sharded, m))
        cases[f"fsdp {m}, four"] = Case(partial(sharded, m), 4)
    for m in IN_PARTS:
        cases[f"tp {m}"] = Case(partial(sharded, m, way="tp"))
        cases[f"fsdp+tp {m}"] = Case(partial(sharded, m, way="fsdp+tp"), 4)
    for m in ONE_EACH:
        cases[f"ddp {m}, NaN in one rank's loss"] = Case(partial(ddp, m, broken="loss"))
        cases[f"fsdp {m}, NaN in one shard"] = Case(partial(sharded, m, broken="gradient"), 4)
        cases[f"ddp {m}, four"] = Case(partial(ddp, m), 4)
        cases[f"ddp {m}, accumulated"] = Case(partial(ddp, m, micro=2), alone=partial(ddp, m))
        for name, options in OPTIONS.items():
            cases[f"ddp {m}, {name}"] = Case(partial(ddp, m, net=Idle if "unused" in name else Net, options=options))
        cases[f"fsdp {m}, NaN in one rank's loss"] = Case(partial(sharded, m, broken="loss"))
        cases[f"tp {m}, NaN in one shard"] = Case(partial(sharded, m, broken="gradient", way="tp"))
        cases[f"hsdp {m}"] = Case(partial(sharded, m, way="hsdp"), 4)
        cases[f"fsdp {m}, float32"] = Case(partial(sharded, m, dtype=torch.float32))
        cases[f"fsdp {m}, offload"] = Case(partial(sharded, m, way="offload"))
    for m in FUSED:
        cases[f"ddp {m}, fused"] = Case(partial(ddp, m, fused=True))
        cases[f"fsdp {m}, fused"] = Case(partial(sharded, m, fused=True), 4)
    cases["tp M, fused"] = Case(partial(sharded, "M", fused=True, way="tp"))
    cases["fsdp+tp arturo, fused"] = Case(partial(sharded, "arturo", fused=True, way="fsdp+tp"), 4)
    for m in KOALAS:
        for form in FORMS[1:]:
            cases[f"ddp {m}, {form}"] = Case(partial(ddp, m, form=form))
            split = partial(ddp, m, form=form, micro=2)
            cases[f"ddp {m}, {form}, accumulated"] = Case(split, alone=partial(ddp, m, form=form))
        cases[f"ddp {m}, attach, static graph"] = Case(partial(ddp, m, form="attach", options=OPTIONS["static graph"]))
        cases[f"fsdp {m}, observe"] = Case(partial(sharded, m, form="observe"))
        means = partial(uneven, m, form="observe", by_count=False)
        cases[f"uneven {m}, loss"] = Case(partial(uneven, m, form="loss", by_count=False), alone=means)
        cases[f"uneven {m}, observe"] = Case(means)
        cases[f"uneven {m}, by count"] = Case(partial(uneven, m, form="observe", by_count=True))
        cases[f"uneven {m}, none left"] = Case(partial(uneven, m, form="observe", by_count=True, first=8))
    # What backward is called on has no spread over examples, of which this one's R knows nothing either.
    passes = partial(ddp, "orthogonal", form="passes")
    cases["ddp orthogonal, passes"] = Case(passes)
    cases["ddp orthogonal, passes, accumulated"] = Case(partial(passes, micro=2), alone=partial(ddp, "orthogonal"))
    for way, size in (("fsdp", 2), ("tp", 2), ("hsdp", 4), ("offload", 2)):
        one = partial(sharded, "orthogonal", way=way)
        cases[f"{way} orthogonal, passes"] = Case(partial(one, form="passes"), size, alone=one)
    for i, m in enumerate(STATES):
        ref, flat = partial(never_stopped, m), i % 2 == 0
        cases[f"save {m}"] = Case(partial(saved, m, to=m, flat=flat), alone=ref)
        cases[f"resume {m}"] = Case(partial(resumed, m, of=m, flat=flat), 4, alone=ref)
    for m in ONE_EACH:
        ref = partial(never_stopped, m, before=range(0))
        cases[f"save {m}, before the first step"] = Case(partial(saved, m, to=f"{m} 0", before=range(0)), alone=ref)
        cases[f"resume {m}, before the first step"] = Case(partial(resumed, m, of=f"{m} 0"), 4, alone=ref)
        if m != "V":
            cases[f"hand out {m}"] = Case(partial(handed_out, m), 4, alone=partial(never_stopped, m))
    early = partial(never_stopped, "lodo buckets", before=range(0))
    cases["hand out lodo buckets, before the first step"] = Case(
        partial(handed_out, "lodo buckets", before=range(0)), 4, alone=early
    )
    cases["load V everywhere"] = Case(loaded_everywhere, 4, alone=partial(never_stopped, "V"))
    ref = partial(never_stopped, "M")
    cases["save M, in eval()"] = Case(partial(saved, "M", to="M away", away=True), alone=ref)
    cases["resume M, in eval()"] = Case(partial(resumed, "M", of="M away", away=True), 4, alone=ref)
    cases |= {f"evaluate, {how}": Case(partial(evaluated, how)) for how in ("follow", "posterior", "reshard")}
    cases["size of LODO's state"] = Case(size_of_state, 4)
    return cases


def _others() -> dict[str, Case]:
    cases = {}
    for m in KOALAS:
        cases[f"ddp {m}, no mean of the loss"] = Case(partial(ddp, m, left_out="loss"))
        cases[f"fsdp {m}, no mean of the loss"] = Case(partial(sharded, m, left_out="loss"))
    for m in SUMMING:
        cases[f"fsdp {m}, no sums over shards"] = Case(partial(sharded, m, left_out="shards"))
    for m in ("cool", "lodo"):  # whose sums only tell whether a gradient is finite
        broken = partial(sharded, m, left_out="shards", broken="gradient")
        cases[f"fsdp {m}, no sums over shards, NaN in one shard"] = Case(broken)
    for m in ONE_EACH:
        cases[f"by itself {m}"] = Case(partial(by_itself, m), 4)
        cases[f"in pairs {m}"] = Case(partial(in_pairs, m), both=True)
        cases[f"half {m}"] = Case(partial(sharded, m, way="half", dtype=torch.float32))
        rounded = partial(ddp, m, dtype=torch.bfloat16, stochastic_rounding=True)
        cases[f"ddp {m}, bfloat16, rounded stochastically"] = Case(rounded)
        spread_out = partial(sharded, m, way="hsdp", dtype=torch.bfloat16, stochastic_rounding=True)
        cases[f"hsdp {m}, bfloat16, rounded stochastically"] = Case(spread_out, 4)
    return cases


CASES = _cases()  # equal to one process
OTHERS = _others()  # not so, or in a way of their own


def worker(rank: int, folder: str, names: Iterable[str] | None = None) -> None:
    """One of four processes: leaves its results, by name, in a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    pair = grid["tp"]
    four = Ranks(rank, 4, None, init_device_mesh("cpu", (4,)), grid, folder=folder)
    two = Ranks(rank % 2, 2, pair.get_group(), pair, number=rank // 2, folder=folder)
    cases = CASES | OTHERS
    cases = cases if names is None else {name: cases[name] for name in names}
    results = {}
    of_two = [(name, case) for name, case in cases.items() if case.size == 2]
    for i, (name, case) in enumerate(of_two):
        if case.both or i % 2 == two.number:
            results[name] = case.run(two)
    dist.barrier()  # what two ranks have saved is there
    results |= {name: case.run(four) for name, case in cases.items() if case.size == 4}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
