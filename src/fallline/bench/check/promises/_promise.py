"""A promise: a program of at most ten lines that raises where an optimizer breaks it, and what it means in words.

Each is written as a function, so that it can be read and linted; what runs is its text. The names `Optimizer`,
`settings`, `step` and `given` of the text are the function's parameters, and a header defines them for one optimizer.
So what is printed as a reproduction is, to the letter, what was run.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LINES = 10
"""How long the text of a promise may be, beside what it imports."""


@dataclass(frozen=True)
class Promise:
    """One thing that an optimizer should do."""

    group: str
    """Which promises it stands beside: the module it is written in."""
    name: str
    """Short, of words joined by dashes."""
    says: str
    """What is promised, in a sentence."""
    why: str
    """What goes wrong for users where it is broken."""
    body: Callable[..., None]
    """The function whose text is the program."""
    needs: str | None = None
    """An argument of the class without which the promise does not apply."""
    unless_closure: str | None = None
    """Why it does not apply to a class whose step demands a closure, if it does not."""
    may_refuse: bool = False
    """Whether an error in words keeps the promise as well."""
    demands: bool = False
    """Whether an error in words is what is promised; the program then raises if none came."""
    ranks: int = 1
    """In how many processes the program runs."""

    @property
    def path(self) -> str:
        """Its full name, `group/name`."""
        return f"{self.group}/{self.name}"

    @property
    def uses(self) -> tuple[str, ...]:
        """Which of the header's names the program uses."""
        return tuple(inspect.signature(self.body).parameters)

    @property
    def imports(self) -> str:
        """What the program imports, a line each."""
        return self._parts[0]

    @property
    def text(self) -> str:
        """The program, without its header and imports: it raises where the promise is broken."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[str, str]:
        source = textwrap.dedent(inspect.getsource(self.body))
        function = ast.parse(source).body[0]
        assert isinstance(function, ast.FunctionDef)
        first = next(one.lineno for one in function.body[1:] if not isinstance(one, ast.Import | ast.ImportFrom))
        lines = source.splitlines()
        imports = textwrap.dedent("\n".join(lines[function.body[1].lineno - 1 : first - 1]))
        text = textwrap.dedent("\n".join(lines[first - 1 : function.end_lineno]))
        return "\n".join(line for line in imports.splitlines() if line), text


def promise(**more: Any) -> Callable[[Callable[..., None]], Promise]:
    """Make a promise of a function: its docstring's first line says it, the rest tells why, the body is the program.

    Args:
        more: `needs`, `unless_closure`, `may_refuse`, `demands` and `ranks` of :class:`Promise`.
    """

    def made(body: Callable[..., None]) -> Promise:
        says, _, why = inspect.cleandoc(body.__doc__ or "").partition("\n")
        return Promise(
            group=body.__module__.rpartition(".")[2],
            name=body.__name__.replace("_", "-"),
            says=says.rstrip("."),
            why=" ".join(why.split()),
            body=body,
            **more,
        )

    return made
