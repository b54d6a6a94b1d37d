"""The command line as a whole: which commands there are. A command's module is imported when the command is called."""

import ast
import os
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import fallline
from fallline.bench.cli.terminal import console

COMMANDS = {
    name: f"fallline.bench.cli.{name}:{function}"
    for name, function in {
        "race": "race",
        "report": "report",
        "merge": "merge",
        "plan": "plan",
        "new": "new",
        "list": "list_",
        "train": "train",
        "check": "check",
    }.items()
}
"""By name, where each is; help lists them in this order, then those of packages that build on this one, then groups."""

GROUPS = {"data": "fallline.bench.cli.data:app"}


@cache
def places() -> dict[str, str]:
    """All commands: `module:function` by name."""
    return {**COMMANDS, **{one.name: one.value for one in entry_points(group="fallline.commands")}, **GROUPS}


def load(name: str) -> Any:
    """The command of that name, its module imported."""
    module, _, attribute = places()[name].partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(rich_markup_mode="rich", add_completion=False)
        found.command(name)(function)
    command = typer.main.get_command(found)
    command.name = name
    return command


def described(name: str) -> TyperCommand:
    """A command as the list of all shows it: its docstring is read off the source, nothing is imported."""
    module, _, attribute = places()[name].partition(":")
    tree = ast.parse(source(module))
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    function = functions.get(attribute) or functions.get(name)
    return TyperCommand(name, help=ast.get_docstring(function) if function else None, rich_markup_mode="rich")


def source(module: str) -> bytes:
    """The text of a module; the packages around it are not imported."""
    first, *inner = module.split(".")
    spec = find_spec(first)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for file in (Path(folder, *inner).with_suffix(".py"), Path(folder, *inner, "__init__.py")):
            if file.is_file():
                return file.read_bytes()
    return Path(spec.origin).read_bytes() if spec is not None and spec.origin and not inner else b""


class Commands(TyperGroup):
    """All commands, each imported when it is asked for; their list needs none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, Any] = dict.fromkeys(places())  # None until they are loaded

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, if there is one."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of all."""
        loaded = self.commands
        self.commands = {name: described(name) for name in loaded}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = loaded


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Optimizers for PyTorch, and a fair race between them: [b]fallline race[/b] needs no arguments."""
    if version:
        console.print(f"fallline {fallline.__version__}")
        raise typer.Exit
    if os.getcwd() not in sys.path:  # so that package.module:Class is found from here, as by python -m
        sys.path.append(os.getcwd())
