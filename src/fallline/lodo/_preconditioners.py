"""LODO's preconditioners G(theta): linear operators on a flat vector, and their derivative by their own parameters.

All but a scale are symmetric by their form, G = lr E' A' A E: the vector is padded (E), goes up through the layers of A
and down through their transposes. Columns travel together, so that a layer's parameters are read once for all of them.

Inside, a vector of h entries in blocks of k is [k, h / k], entry i of all blocks side by side, and a layer's blocks are
[in, out, h / k]: a layer is k^2 multiplications over long rows, where products of k x k matrices would crawl.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._engine.run import call
from .._engine.tape import HALF
from .._shards import size

SLAB = 2**18  # numbers of theta that learn at a time: few calls where layers are small, what a cache holds where not


def rise(s: Tensor, w: Tensor) -> Tensor:
    """Columns [c, in, 1, blocks] through a layer [in, out, blocks]."""
    return (s * w).sum(1)


def fall(y: Tensor, w: Tensor) -> Tensor:
    """Columns [c, 1, out, blocks] through its transpose."""
    return (y * w).sum(2)


def _precision(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in HALF else p.dtype.to_real()


class Preconditioner:
    """One bucket's operator G: a view of the state under the bucket's first parameter.

    Attributes:
        parameters: the tensors that it covers, in the order of the flat vector.
        n: their real numbers.
        width: entries of a vector inside.
    """

    mixes: ClassVar[bool] = False  # by a permutation before each of ``depth`` layers

    def __init__(self, parameters: Sequence[Tensor], state: dict[str, Tensor], group: dict[str, Any]) -> None:
        self.parameters, self.state, self.group = list(parameters), state, group
        self.sizes = [size(p) for p in parameters]
        self.n = sum(self.sizes)
        self.width = state["permutations"].shape[1] if self.mixes else self.n
        self._inverse: Tensor | None = None

    # -- what a kind writes -----------------------------------------------------------------------------------

    @classmethod
    def shape(cls, n: int, group: dict[str, Any]) -> tuple[int, int, int, int]:
        """Of theta: layers, entries in, entries out, blocks."""
        raise NotImplementedError

    @classmethod
    def draw(cls, n: int, group: dict[str, Any], generator: torch.Generator) -> Iterator[Tensor]:
        """Theta at the start, layer by layer: [in, out, blocks]."""
        raise NotImplementedError

    def multiply(self, u: Tensor) -> Tensor:
        """G u / lr for every column of u: [c, n]."""
        raise NotImplementedError

    def pairs(self, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For two columns a and b, d(a' G b) / d theta / lr in factors: layers, s and y, [layers, 2, k, blocks] each.

        The derivative by an entry [in, out] of a block is s_b[in] y_a[out] + s_a[in] y_b[out]. Theta may change in
        the layers that have been yielded: nothing reads them again.
        """
        raise NotImplementedError

    # -- its state --------------------------------------------------------------------------------------------

    @classmethod
    def layout(
        cls, parameters: Sequence[Tensor], group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and precisions by name: float32 for half-precision parameters, else their own."""
        n, dtype = sum(map(size, parameters)), _precision(parameters[0])
        layers, k, _, blocks = shape = cls.shape(n, group)
        tensors: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"theta": (shape, dtype)}
        if cls.mixes:
            tensors["permutations"] = ((group["depth"], k * blocks), torch.int32)
        if group["meta_optimizer"] == "adam":
            tensors["first_moment"] = (shape, dtype)
            tensors["second_moment"] = ((layers, 1, 1, blocks) if group["second_moment"] == "block" else shape, dtype)
        tensors |= {"momentum": ((n,), dtype), "moved": ((len(parameters),), dtype)}
        return tensors | {"step_size": ((), dtype), "updates": ((), torch.int64)}

    @classmethod
    def bytes(cls, parameters: Sequence[Tensor], group: dict[str, Any]) -> int:
        """What the state takes, with the inverse permutations and what a step keeps of every layer."""
        tensors = cls.layout(parameters, group)
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
        passing = math.prod(tensors["permutations"][0]) * 2 * tensors["theta"][1].itemsize if cls.mixes else 0
        return sum(sizes.values()) + sizes.get("permutations", 0) + passing

    @classmethod
    def allocate(
        cls, parameters: Sequence[Tensor], group: dict[str, Any], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The state at the start, on the first parameter's device, drawn on the CPU."""
        device = parameters[0].device
        state = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in cls.layout(parameters, group).items()
        }
        for order in state.get("permutations", ()):
            order.copy_(torch.randperm(len(order), generator=generator, device="cpu"))
        drawn = cls.draw(sum(map(size, parameters)), group, generator)
        for layer, value in zip(state["theta"], drawn, strict=True):
            layer.copy_(value)
        return state

    @property
    def typed(self) -> bool:
        """Whether the state is of the parameters' precision, which may have changed, as ``model.double()`` does."""
        return self.state["momentum"].dtype == _precision(self.parameters[0])

    def follow_type(self) -> None:
        """Convert the state to the parameters' precision."""
        for name, (_, dtype) in self.layout(self.parameters, self.group).items():
            self.state[name] = self.state[name].to(dtype)

    # -- for study --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, vector: Tensor) -> Tensor:
        """G times a vector, at the group's present learning rate.

        Args:
            vector: [n], or [rows, n] for several.
        """
        rows = vector.to(self.state["theta"]).reshape(-1, self.n)
        lr: float | Tensor = self.group["lr"]
        return (self.multiply(rows) * lr).view(vector.shape)

    def dense(self) -> Tensor:
        """G as a matrix [n, n]."""
        theta = self.state["theta"]
        return self.apply(torch.eye(self.n, dtype=theta.dtype, device=theta.device))

    # -- plumbing ---------------------------------------------------------------------------------------------

    @property
    def _inverses(self) -> Tensor:
        """The inverse permutations, [depth, width]."""
        if self._inverse is None:
            permutations = self.state["permutations"]
            order = torch.arange(self.width, dtype=permutations.dtype, device=permutations.device)
            inverse = torch.empty_like(permutations)
            self._inverse = inverse.scatter_(1, permutations.long(), order.expand_as(permutations))
        return self._inverse

    def _assign(self, to: Tensor, value: Tensor, what: str) -> None:
        if value.shape != to.shape:
            raise ValueError(f"{what} have the shape {tuple(to.shape)}, not {tuple(value.shape)}")
        with torch.no_grad():
            to.copy_(value)

    def _assign_permutations(self, value: Tensor) -> Tensor:
        """Check them, and return them as int64."""
        wanted = self.state["permutations"]
        if value.shape != wanted.shape:
            raise ValueError(f"permutations have the shape {tuple(wanted.shape)}, not {tuple(value.shape)}")
        value = value.to(wanted.device, torch.int64)
        order = torch.arange(self.width, device=wanted.device)
        if not torch.equal(value.sort(dim=1).values, order.expand_as(value)):
            raise ValueError(f"permutations: a row is no permutation of 0 to {self.width - 1}")
        return value

    def _store_permutations(self, value: Tensor) -> None:
        self.state["permutations"].copy_(value)
        self._inverse = None


class Network(Preconditioner):
    """LODO's own: layers of k x k blocks between fixed random permutations, on twice the vector's width."""

    mixes = True

    @classmethod
    def shape(cls, n: int, group: dict[str, Any]) -> tuple[int, int, int, int]:
        k: int = group["block_size"]
        blocks: int = 2 * n // k + 1 if group["padding"] == "release" else -(-2 * n // k)
        return group["depth"], k, k, blocks

    @classmethod
    def draw(cls, n: int, group: dict[str, Any], generator: torch.Generator) -> Iterator[Tensor]:
        depth, k, _, blocks = cls.shape(n, group)
        for _ in range(depth):
            q, r = torch.linalg.qr(torch.randn(blocks, k, k, dtype=torch.float64, generator=generator, device="cpu"))
            yield (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).permute(1, 2, 0)  # uniform over rotations

    def multiply(self, u: Tensor) -> Tensor:
        z = self._up(pad(u, (0, self.width - self.n)))
        for w, inverse in zip(reversed(self.state["theta"].unbind()), reversed(self._inverses.unbind()), strict=True):
            z = self._down(z, w, inverse)
        return z[:, : self.n]

    def pairs(self, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        depth, k, _, blocks = self.state["theta"].shape
        s = columns.new_empty(depth, 2, k, blocks)
        y = self._up(pad(columns, (0, self.width - self.n)), s.view(depth, 2, self.width).unbind())
        theta, inverses = self.state["theta"].unbind(), self._inverses.unbind()
        slab = max(1, SLAB // (k * self.width))
        for end in range(depth, 0, -slab):
            start = max(0, end - slab)
            ys = []
            for layer in reversed(range(start, end)):
                ys.append(y.view(2, k, blocks))
                if layer:
                    y = self._down(y, theta[layer], inverses[layer])
            together = torch.stack(ys[::-1]) if len(ys) > 1 else ys[0].unsqueeze(0)
            yield slice(start, end), s[start:end], together

    def _up(self, u: Tensor, kept: Sequence[Tensor] | None = None) -> Tensor:
        """Columns [c, width] to the top; ``kept`` takes each layer's gathered input."""
        theta, orders, shape = self.state["theta"].unbind(), self.state["permutations"].unbind(), u.shape
        for layer, (w, order) in enumerate(zip(theta, orders, strict=True)):
            s = torch.index_select(u, 1, order, out=kept[layer] if kept else None)
            u = call(rise, [s.view(len(s), len(w), 1, -1), w], {}, self.group["fused"])
            u = u.view(shape)
        return u

    def _down(self, y: Tensor, w: Tensor, inverse: Tensor) -> Tensor:
        q = call(fall, [y.view(len(y), 1, len(w), -1), w], {}, self.group["fused"])
        return torch.index_select(q.view(y.shape), 1, inverse)

    @property
    def blocks(self) -> Tensor:
        """A view of the blocks, [depth, blocks, in, out]; assignment copies."""
        return self.state["theta"].permute(0, 3, 1, 2)

    @blocks.setter
    def blocks(self, value: Tensor) -> None:
        self._assign(self.blocks, value, "blocks")

    @property
    def permutations(self) -> Tensor:
        """Before each layer, s[j] = u[permutation[j]]; block b holds the entries b k to b k + k - 1. [depth, width].

        A copy: assign to change them.
        """
        inside = self.state["permutations"].long()
        depth, k, _, blocks = self.state["theta"].shape
        logical = inside.view(depth, k, blocks).transpose(1, 2).reshape(depth, self.width)
        logical[1:] = logical[1:] % blocks * k + logical[1:] // blocks  # the first layer reads the vector itself
        return logical

    @permutations.setter
    def permutations(self, value: Tensor) -> None:
        value = self._assign_permutations(value).clone()
        depth, k, _, blocks = self.state["theta"].shape
        value[1:] = value[1:] % k * blocks + value[1:] // k
        self._store_permutations(value.view(depth, blocks, k).transpose(1, 2).reshape(depth, self.width))


class Residual(Preconditioner):
    """LODO-Residuals: layers u + w u[permutation], then a diagonal, on exactly twice the width. May be indefinite."""

    mixes = True

    @classmethod
    def shape(cls, n: int, group: dict[str, Any]) -> tuple[int, int, int, int]:
        return group["depth"] + 1, 1, 1, 2 * n  # the last is the diagonal in the middle

    @classmethod
    def draw(cls, n: int, group: dict[str, Any], generator: torch.Generator) -> Iterator[Tensor]:
        depth = group["depth"]
        for _ in range(depth):
            yield torch.randn(1, 1, 2 * n, dtype=torch.float64, generator=generator, device="cpu") / depth**0.5
        yield torch.ones(1, 1, 2 * n, device="cpu")

    def multiply(self, u: Tensor) -> Tensor:
        z = self._up(pad(u, (0, self.n))) * self.middle
        for layer in reversed(range(len(self.weights))):
            z = self._down(z, layer)
        return z[:, : self.n]

    def pairs(self, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        layers = len(self.weights)
        s, y = columns.new_empty(2, layers + 1, 2, 1, self.width).unbind()
        top = self._up(pad(columns, (0, self.n)), s)
        s[layers], y[layers] = top.unsqueeze(1), top.unsqueeze(1) / 2
        z = top * self.middle
        for layer in reversed(range(layers)):
            y[layer] = z.unsqueeze(1)
            z = self._down(z, layer)
        yield slice(None), s, y

    def _up(self, u: Tensor, kept: Tensor | None = None) -> Tensor:
        for layer, (w, order) in enumerate(zip(self.weights, self.state["permutations"], strict=True)):
            s = torch.index_select(u, 1, order, out=None if kept is None else kept[layer].view(u.shape))
            u = torch.addcmul(u, w, s)
        return u

    def _down(self, y: Tensor, layer: int) -> Tensor:
        return y + (self.weights[layer] * y).index_select(1, self._inverses[layer])

    @property
    def weights(self) -> Tensor:
        """A view of the layers' weights, [depth, 2 n]; assignment copies."""
        return self.state["theta"][:-1, 0, 0]

    @weights.setter
    def weights(self, value: Tensor) -> None:
        self._assign(self.weights, value, "weights")

    @property
    def middle(self) -> Tensor:
        """A view of the diagonal in the middle, [2 n]; assignment copies."""
        return self.state["theta"][-1, 0, 0]

    @middle.setter
    def middle(self, value: Tensor) -> None:
        self._assign(self.middle, value, "the diagonal's entries")

    @property
    def permutations(self) -> Tensor:
        """Before each layer, [depth, 2 n]. A copy: assign to change them."""
        return self.state["permutations"].long()

    @permutations.setter
    def permutations(self, value: Tensor) -> None:
        self._store_permutations(self._assign_permutations(value))


class Diagonal(Preconditioner):
    """LODO-Diagonal: a weight for each coordinate."""

    @classmethod
    def shape(cls, n: int, group: dict[str, Any]) -> tuple[int, int, int, int]:
        return 1, 1, 1, n

    @classmethod
    def draw(cls, n: int, group: dict[str, Any], generator: torch.Generator) -> Iterator[Tensor]:
        yield torch.ones(cls.shape(n, group)[1:], device="cpu")

    def multiply(self, u: Tensor) -> Tensor:
        return u * self.weights

    def pairs(self, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        s = columns[None, :, None]
        yield slice(None), s, s / 2

    @property
    def weights(self) -> Tensor:
        """A view of the weights, [n], or [1] where one is for all; assignment copies."""
        return self.state["theta"][0, 0, 0]

    @weights.setter
    def weights(self, value: Tensor) -> None:
        self._assign(self.weights, value, "weights")


class Global(Diagonal):
    """LODO-Global: one weight for all coordinates; with ``meta_optimizer="sgd"`` classical hypergradient descent."""

    @classmethod
    def shape(cls, n: int, group: dict[str, Any]) -> tuple[int, int, int, int]:
        return 1, 1, 1, 1

    def pairs(self, columns: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        product = (columns[0] * columns[1]).sum()
        one = torch.ones_like(product)
        yield slice(None), torch.stack([one, product]).view(1, 2, 1, 1), torch.stack([one, one - one]).view(1, 2, 1, 1)


KINDS: dict[str, type[Preconditioner]] = {
    "network": Network,
    "diagonal": Diagonal,
    "global": Global,
    "residual": Residual,
}
