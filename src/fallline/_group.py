"""What a step sees of a parameter group, and of the scalars that all groups share."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor


class View:
    """Values by name that can be read as attributes, and not be written."""

    __slots__ = ("values",)

    values: Mapping[str, Any]

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "values", values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: a step hands on what it finds as a value")


class Shared(View):
    """The shared scalars: 0-D tensors that a step writes to in place."""

    __slots__ = ()

    skipped: Tensor

    def __getattr__(self, name: str) -> Tensor:
        value: Tensor = _named(self, name)
        return value


class Group(View):
    """One parameter group: local real tensors, their state, and the group's settings, each under its name.

    A subclass says by annotations which settings and state there are, for those who check types.

    Attributes:
        index: the group's number.
        owners: the parameters as the user gave them.
        params: of each, what this rank holds, as a real tensor that shares its memory.
        grads: their gradients, likewise.
        lists: names of the values that are lists with one tensor a parameter.
    """

    __slots__ = ("grads", "index", "lists", "owners", "params")

    index: int
    owners: list[Tensor]
    params: list[Tensor]
    grads: list[Tensor]
    lists: tuple[str, ...]

    lr: float | Tensor
    maximize: bool
    fused: bool
    skip_nonfinite: bool
    stochastic_rounding: bool

    def __init__(
        self,
        index: int,
        owners: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor],
        state: Mapping[str, list[Tensor]],
        settings: Mapping[str, Any],
    ) -> None:
        put = object.__setattr__
        put(self, "index", index)
        put(self, "owners", owners)
        put(self, "params", params)
        put(self, "grads", grads)
        put(self, "lists", tuple(state))
        put(self, "values", {**settings, **state})

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _named(self, name)

    def select(
        self,
        keep: Sequence[int],
        known: Callable[[str, list[Tensor]], list[Tensor]] | None = None,
        **more: list[Tensor],
    ) -> Self:
        """The group with some of its parameters.

        Args:
            keep: their places in ``params``.
            known: what each new list goes through, by its name.
            more: state of theirs that not all of the group have.
        """

        def some(name: str, ts: list[Tensor]) -> list[Tensor]:
            return ts if known is None else known(name, ts)

        lists = {name: some(name, [getattr(self, name)[i] for i in keep]) for name in ("owners", "params", "grads")}
        state = {name: some(name, [self.values[name][i] for i in keep]) for name in self.lists}
        state |= {name: some(name, ts) for name, ts in more.items()}
        return type(self)(self.index, **lists, state=state, settings=self.values)


def _named(view: View, name: str) -> Any:
    try:
        return view.values[name]
    except KeyError:
        raise AttributeError(
            f"there is no setting, state or shared scalar {name!r}: there are {', '.join(sorted(view.values))}"
        ) from None


RESERVED = frozenset(Group.__slots__) | {"values", "select"}
"""Names that no setting and no state may have."""
