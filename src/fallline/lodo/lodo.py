"""LODO: a preconditioner network that learns while it optimizes (Liao et al., 2023)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from .._checkpoint import refuse
from .._engine.run import call
from .._group import Group, Shared
from .._optimizer import Optimizer, Params, _precision
from .._settings import Count, CountOrZero, NonNegative, Positive, Rate, RunSettings, Share, inside
from .._shards import part, size, whole
from ..kernels import clean
from ._memory import free_memory
from ._preconditioners import KINDS, Preconditioner

BUCKET = 4_000_000


def adam_(
    theta: Tensor, s: Tensor, y: Tensor, M: Tensor, V: Tensor, *, w1: Tensor, w2: Tensor, lr: Tensor, eps: Tensor
) -> None:
    g = meta_gradient(s, y)
    M.lerp_(g, w1)
    g2 = g.square()
    V.lerp_(g2 if V.shape == g2.shape else g2.mean((1, 2), keepdim=True), w2)
    theta.sub_((M / V.sqrt().add_(eps)).mul_(lr))


def sgd_(theta: Tensor, s: Tensor, y: Tensor, *, lr: Tensor) -> None:
    theta.sub_(meta_gradient(s, y).mul_(lr))


def meta_gradient(s: Tensor, y: Tensor) -> Tensor:
    """Two outer products a block: [layers, in, out, blocks] from two columns, [layers, 2, in or out, blocks]."""
    s_m, s_g = s.unsqueeze(3).unbind(1)
    y_m, y_g = y.unsqueeze(2).unbind(1)
    return torch.addcmul(s_g * y_m, s_m, y_g)


def move_(p: Tensor, direction: Tensor, *, shrink: float | Tensor | None, lr: float | Tensor) -> None:
    if shrink is not None:
        p.mul_(shrink)
    p.sub_(direction * lr)


class LODOGroup(Group):
    """What a step reads of a group."""

    __slots__ = ()

    meta_lr: float
    beta: float
    meta_optimizer: str
    meta_betas: tuple[float, float]
    meta_eps: float
    meta_eps_mode: str
    weight_decay: float


class LODO(Optimizer[LODOGroup]):
    r"""LODO: momentum times a preconditioner G that descends the next loss by its own parameters, every step.

    .. math:: m \leftarrow \beta m + (1 - \beta) g, \qquad x \leftarrow x - G(\theta) m, \qquad
              G(\theta) = \eta E^\top A(\theta)^\top A(\theta) E

    E pads the flat vector of all weights to twice its length; A is ``depth`` sparse layers, each a fixed random
    permutation and blocks of k x k, at first orthogonal: training starts as momentum SGD. Before each step, Adam takes
    one on :math:`\theta`, along the gradient of the present loss through the step that led to it. For that, g and
    the old m suffice: for the entry [i, o] of a block, with s the input of its layer on the way up and y that of its
    transpose on the way down,

    .. math:: \partial \ell / \partial W_{io} = -\eta \, (s^g_i y^m_o + s^m_i y^g_o).

    No second backward pass, no retained graph. The state is large: ``2 k depth`` numbers a weight, 128, three times.

    Args:
        params: parameters or parameter groups; each group has networks of its own, and all settings but
            ``skip_nonfinite`` and ``fused`` may differ.
        lr: :math:`\eta`, the learning rate that training starts with. Decay ``meta_lr`` along with it: the network
            learns against a decay of ``lr`` alone.
        meta_lr: learning rate of :math:`\theta`.
        beta: :math:`\beta`, decay of the momentum. The most dangerous setting: on noisy problems try 0.2 and 0 as well.
        depth: layers; 0 is momentum SGD.
        block_size: k. 8 with depth 8 costs the same as 4 with 16.
        padding: the width beyond 2 n: ``"release"``, as the authors' program, a whole block where k divides 2 n;
            ``"ceil"``, none there.
        preconditioner: ``"network"``; or, to compare, ``"diagonal"``, ``"global"`` (one number) and ``"residual"`` (the
            authors take ``depth=64``), which may become indefinite.
        meta_optimizer: of :math:`\theta`: ``"adam"``, or ``"sgd"``, which has no state.
        meta_betas: Adam's decay rates.
        meta_eps: Adam's epsilon. Meta-gradients are small, products of two gradients: it matters. (In float32 a second
            moment is lost below 1e-38, so an epsilon far below 1e-20 protects from nothing.)
        meta_eps_mode: ``"keras"``: added before the second moment's bias is corrected; ``"torch"``: after.
        second_moment: Adam's, one for each ``"entry"`` of a block; or for each ``"block"``, the mean over its entries,
            which saves a third of the state.
        bucket_size: consecutive tensors of a group share a network until it covers this many numbers, None: 4 million.
            No tensor is split, and no two networks couple.
        generator: a CPU generator that draws permutations and blocks; None: each network's own, seeded with its
            number, so that all ranks draw the same.
        weight_decay: shrinks the weights by ``1 - lr * weight_decay`` before the step.
        skip_nonfinite: turn a step with a non-finite gradient into nothing.
        maximize: ascend.
        stochastic_rounding: round bfloat16 parameters up or down, in expectation to what was computed; else to nearest.
        fused: compiled code: needs a C++ compiler, on a GPU Triton; the network is a graph of :func:`torch.compile`.

    A parameter without gradient stays, and is left out of this step and of what the next learns from it. Under gradient
    accumulation call ``step`` once a batch: the momentum and the next gradient must come from different data. Sharded
    gradients are gathered, and every rank computes the same, exact step: the networks are not sharded.

    Raises:
        ValueError: a setting is outside its range, or the generator is on another device.
        MemoryError: the networks would not fit; nothing has been allocated.
        RuntimeError: in ``step``, a gradient is sparse.

    Reference: Liao, Dangovski, Foerster and Soljačić, Learning to Optimize Quasi-Newton Methods, TMLR 2023,
    arXiv 2210.06171.

    Example:
        >>> import torch
        >>> from fallline import LODO
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = LODO([w], lr=0.1, beta=0.5)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     (w[0].square() + 0.05 * w[1].square()).backward()
        ...     optimizer.step()
        >>> G = optimizer.networks[0].dense()  # it learned to step further where the loss is flat
        >>> bool(w.detach().abs().max() < 1e-2), bool(G[1, 1] > G[0, 0])
        (True, True)
    """

    _run_defaults = {"skip_nonfinite": True}
    _generator: torch.Generator | None = None
    _known: list[list[Preconditioner]] | None = None
    _loading: Mapping[Tensor, list[Tensor]] = {}  # while a checkpoint is read, a network's parameters by the first

    def __init__(
        self,
        params: Params,
        lr: Rate = 1.0,
        *,
        meta_lr: NonNegative = 1e-3,
        beta: Share = 0.9,
        depth: CountOrZero = 16,
        block_size: Count = 4,
        padding: Literal["release", "ceil"] = "release",
        preconditioner: Literal["network", "diagonal", "global", "residual"] = "network",
        meta_optimizer: Literal["adam", "sgd"] = "adam",
        meta_betas: tuple[float, float] = (0.9, 0.999),
        meta_eps: Positive = 1e-7,
        meta_eps_mode: Literal["keras", "torch"] = "keras",
        second_moment: Literal["entry", "block"] = "entry",
        bucket_size: Count | None = None,
        generator: torch.Generator | None = None,
        weight_decay: NonNegative = 0.0,
        **run: Unpack[RunSettings],
    ) -> None:
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator is on {generator.device}: it must be on the CPU, so that all ranks draw alike")
        self._generator = generator
        settings: dict[str, Any] = dict(
            lr=lr,
            meta_lr=meta_lr,
            beta=beta,
            depth=depth,
            block_size=block_size,
            padding=padding,
            preconditioner=preconditioner,
            meta_optimizer=meta_optimizer,
            meta_betas=meta_betas,
            meta_eps=meta_eps,
            meta_eps_mode=meta_eps_mode,
            second_moment=second_moment,
            bucket_size=bucket_size,
            weight_decay=weight_decay,
        )
        super().__init__(params, settings, **run)

    def _check(self, settings: dict[str, Any]) -> None:
        super()._check(settings)
        for name in ("depth", "block_size", "bucket_size"):
            if not isinstance(settings[name], int | None):
                raise ValueError(f"{name}={settings[name]!r} is outside its range: a whole number")
        betas = settings["meta_betas"]
        if not (isinstance(betas, Sequence) and len(betas) == 2 and all(inside(beta, "[0, 1)") for beta in betas)):
            raise ValueError(f"meta_betas={betas!r} is outside its range: two numbers in [0, 1)")

    # -- the step ---------------------------------------------------------------------------------------------

    def advance(self, groups: list[LODOGroup], shared: Shared, loss: Any) -> None:
        ok = self.finite(groups) if groups[0].skip_nonfinite else None
        if ok is not None:
            shared.skipped.add_(~ok)
        networks = self._networks()
        for t in groups:
            directions: dict[Tensor, Tensor] = {}
            for net in networks[t.index]:
                if any(p.grad is not None for p in net.parameters):
                    m = self._learn_and_average(net, t, ok)
                    pieces = net.multiply(m.unsqueeze(0))[0].split(net.sizes)
                    directions.update(zip(net.parameters, pieces, strict=True))
            lr = t.lr if ok is None else ok.to(_precision(ok.device)) * t.lr
            shrink = 1 - lr * t.weight_decay if t.weight_decay else None
            self.each(move_, t, [part(directions[p], p) for p in t.owners], shrink=shrink, lr=lr)

    def _learn_and_average(self, net: Preconditioner, t: LODOGroup, ok: Tensor | None) -> Tensor:
        """Theta's step and the momentum's; returns the momentum of the members that have a gradient."""
        state = net.state
        m, moved, step_size = state["momentum"], state["moved"], state["step_size"]
        g = torch.cat([m.new_zeros(n) if p.grad is None else whole(p.grad).reshape(-1) for p, n in _members(net)])
        g = clean((-g if t.maximize else g).to(m.dtype), ok)

        # The last step was x -= step_size G m in the members that moved; g is the gradient where it led.
        led = _spread(moved, net)
        self._learn(net, t, m * led, g * led, ok)

        active = [p.grad is not None for p in net.parameters]
        everyone = all(active)
        takes_part = torch.ones_like(moved) if everyone else torch.tensor(active, device="cpu").to(moved)
        weight = (1 - t.beta) * (1.0 if ok is None else ok.to(m.dtype))
        m.lerp_(g, weight if everyone else weight * _spread(takes_part, net))
        lr = torch.ones_like(step_size) * t.lr
        moved.copy_(takes_part if ok is None else torch.where(ok, takes_part, moved))
        step_size.copy_(lr if ok is None else torch.where(ok, lr, step_size))
        return m if everyone else m * _spread(takes_part, net)

    def _learn(self, net: Preconditioner, t: LODOGroup, m: Tensor, g: Tensor, ok: Tensor | None) -> None:
        """One step of theta along d loss / d theta = -step_size d(g' G m) / d theta."""
        state = net.state
        theta, updates = state["theta"], state["updates"]
        # Both columns are scaled to the same norm, the root of the meta-gradient's, so that no product on the way
        # overflows; one that could when it is squared is not taken.
        norms = torch.stack([torch.linalg.vector_norm(m), torch.linalg.vector_norm(g)]).to(_precision(m.device))
        largest = state["step_size"] * norms.prod()
        go = largest < torch.finfo(theta.dtype).max ** 0.5 / 1e3
        scale = torch.where(go & (norms > 0).all(), largest.sqrt() / norms, 0.0)
        columns = torch.stack([m * scale[0], g * -scale[1]])
        if ok is not None:
            go = go & ok
        now, count = go.to(norms.dtype), updates.to(norms.dtype) + 1
        updates.add_(go)
        scalars = {"lr": now * t.meta_lr}
        moments: list[Tensor] = []
        if t.meta_optimizer == "adam":
            beta1, beta2 = t.meta_betas
            correction1, correction2 = 1 - beta1**count, 1 - beta2**count
            eps = t.meta_eps if t.meta_eps_mode == "keras" else t.meta_eps * correction2.sqrt()
            scalars = {
                "w1": now * (1 - beta1),
                "w2": now * (1 - beta2),
                "lr": now * t.meta_lr * correction2.sqrt() / correction1,
                "eps": (torch.ones_like(now) * eps).clamp_min(torch.finfo(theta.dtype).tiny),
            }
            moments = [state["first_moment"], state["second_moment"]]
        scalars = {name: value.to(theta.dtype) for name, value in scalars.items()}
        for layers, s, y in net.pairs(columns):
            own = [theta[layers], s, y, *(moment[layers] for moment in moments)]
            call(adam_ if moments else sgd_, own, scalars, t.fused)

    # -- the networks -----------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[Preconditioner]:
        """The preconditioners, one a bucket, in the order of groups and parameters."""
        return [net for nets in self._networks() for net in nets]

    @torch.no_grad()
    def forget(self) -> None:
        """Call it when the weights were changed from outside: the next step learns nothing from the last one."""
        for net in self.networks:
            net.state["step_size"].zero_()

    def _networks(self) -> list[list[Preconditioner]]:
        """By group; made anew when state was loaded, moved or copied, or groups have changed."""
        known, groups = self._known, self.param_groups
        if (
            known is None
            or len(known) != len(groups)
            or any(
                net.group is not group or self.state.get(net.parameters[0]) is not net.state
                for nets, group in zip(known, groups, strict=True)
                for net in nets
            )
        ):
            known = self._known = [self._of_group(group) for group in groups]
        for net in (net for nets in known for net in nets):
            self._follow_type(net)
        return known

    def _of_group(self, group: dict[str, Any]) -> list[Preconditioner]:
        """Each parameter knows its network by number, and its place in the flat vector."""
        here, nets = set(group["params"]), []
        for members in _buckets({p: self._numbers(p) for p, state in self.state.items() if "bucket" in state}):
            if here.isdisjoint(members):
                continue
            state = self.state[members[0]]
            if "theta" not in state or len(state["moved"]) != len(members):
                raise RuntimeError(
                    "LODO: a network's parameters are gone together with their state. Leave the state of a parameter "
                    "that is taken out of its group, or begin with a new optimizer"
                )
            nets.append(KINDS[group["preconditioner"]](members, state, group))
        return nets

    def _numbers(self, p: Tensor) -> tuple[int, int]:
        """A parameter's network and its place there; the device is asked only once."""
        known: dict[Tensor, tuple[Tensor, int, int]] = self.__dict__.setdefault("_known_numbers", {})
        bucket = self.state[p]["bucket"]
        if p not in known or known[p][0] is not bucket:
            known[p] = bucket, int(bucket), int(self.state[p]["place"])
        return known[p][1:]

    def _follow_type(self, net: Preconditioner) -> None:
        """The network of parameters whose dtype was changed: drawn anew if it has learned nothing, else converted."""
        if net.typed:
            return
        if self._generator is None and not net.state["updates"].item() and not net.state["moved"].any().item():
            number = self._numbers(net.parameters[0])[0]
            net.state.update(net.allocate(net.parameters, net.group, torch.Generator().manual_seed(number)))
        else:
            net.follow_type()

    def _read(self, owners: dict[Any, Any], states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        states = {i: dict(state) for i, state in states.items()}
        for number, (i, state) in enumerate(list(states.items())):
            if isinstance(state.get("members"), Tensor):  # of version 0.1.0: places in the group
                listed = owners[i][2]["params"]
                for place, at in enumerate(state.pop("members").reshape(-1).tolist()):
                    if not 0 <= at < len(listed):
                        refuse(
                            self, f"{owners[i][3]} names parameter {at} as a member of its network, and there is none"
                        )
                    own = {"bucket": torch.tensor(number, device="cpu"), "place": torch.tensor(place, device="cpu")}
                    states[listed[at]] = {**states.get(listed[at], {}), **own}
        whole = {
            i: state for i, state in states.items() if all(_number(state.get(name)) for name in ("bucket", "place"))
        }
        self._loading = {}
        numbers = {i: (int(state["bucket"]), int(state["place"])) for i, state in whole.items()}
        first: dict[tuple[int, int], Any] = {}
        for i, own_place in numbers.items():
            if first.setdefault(own_place, i) != i:
                refuse(self, f"{owners[i][3]} has the place of {owners[first[own_place]][3]} in a network")
        for members in _buckets(numbers):
            if len({id(owners[i][1]) for i in members}) > 1:
                refuse(self, f"{owners[members[0]][3]} shares a network with a parameter of another group")
            self._loading[owners[members[0]][0]] = [owners[i][0] for i in members]
        return states

    def _wanted(self, p: Tensor, group: dict[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """Of each parameter two numbers; with the first of a network also what the network is made of."""
        number = torch.empty((), dtype=torch.int64, device="meta")
        wanted = {"bucket": number, "place": number}
        members = self._loading.get(p)
        if members is None:
            return wanted, {}
        layout = KINDS[group["preconditioner"]].layout(members, group)
        return wanted | {name: torch.empty(of, dtype=dtype, device="meta") for name, (of, dtype) in layout.items()}, {}

    def _mend(self, *args: Any) -> None:
        super()._mend(*args)
        self._loading = {}

    def _listed(self, p: Tensor) -> Iterable[str]:
        return ()

    def _allocate(self, params: list[Tensor], group: dict[str, Any]) -> None:
        kind, bucket_size = KINDS[group["preconditioner"]], group["bucket_size"] or BUCKET
        buckets: list[list[Tensor]] = []
        for p in params:
            if p.numel():
                if not buckets or sum(map(size, buckets[-1])) >= bucket_size:
                    buckets.append([])
                buckets[-1].append(p)
        for device in {bucket[0].device for bucket in buckets}:
            here = [bucket for bucket in buckets if bucket[0].device == device]
            free, needed = free_memory(device), sum(kind.bytes(bucket, group) for bucket in here)
            if free is not None and needed > free:
                n = sum(size(p) for bucket in here for p in bucket)
                raise MemoryError(
                    f"LODO's networks for {n:,} parameters take {needed:,} bytes ({needed / n:,.0f} a parameter), "
                    f"and {device} has {free:,} free. To shrink them: less depth (here {group['depth']}), a smaller "
                    f"block_size (here {group['block_size']}), second_moment='block' (a third less), "
                    "meta_optimizer='sgd' (two thirds less), or preconditioner='diagonal'"
                )
        for p in params:
            self.state[p] = {}
        for bucket in buckets:
            number = 1 + max((self._numbers(p)[0] for p, state in self.state.items() if "bucket" in state), default=-1)
            generator = self._generator or torch.Generator().manual_seed(number)
            network = kind.allocate(bucket, group, generator)
            for place, p in enumerate(bucket):
                own = {name: torch.tensor(n, device=p.device) for name, n in (("bucket", number), ("place", place))}
                self.state[p].update(own)
                self.__dict__.setdefault("_known_numbers", {})[p] = own["bucket"], number, place
            self.state[bucket[0]].update(network)
        self._known = None


def _number(value: Any) -> bool:
    """Whether this is a tensor of one whole number."""
    return isinstance(value, Tensor) and value.numel() == 1 and value.dtype == torch.int64


def _buckets(numbers: Mapping[Any, tuple[int, int]]) -> list[list[Any]]:
    """Whose numbers name one network, in the order of their places; network by network."""
    buckets: dict[int, dict[int, Any]] = {}
    for key, (bucket, place) in numbers.items():
        buckets.setdefault(bucket, {})[place] = key
    return [[members[place] for place in sorted(members)] for _, members in sorted(buckets.items())]


def _members(net: Preconditioner) -> Sequence[tuple[Tensor, int]]:
    return list(zip(net.parameters, net.sizes, strict=True))


def _spread(numbers: Tensor, net: Preconditioner) -> Tensor:
    """One number a member to one a coordinate."""
    return torch.cat([number.expand(n) for number, n in zip(numbers.unbind(), net.sizes, strict=True)])
