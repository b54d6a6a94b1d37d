"""Docstrings as Markdown: Sphinx' roles and formulas in what the site knows, doctests as examples."""

import re
import textwrap
from typing import Any

import griffe

TABLE = r"^( *=+(?: +=+)+ *)\n(.*?)\n\1\n(.*?)\n\1$"


class Docstrings(griffe.Extension):
    """Rewrites each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object that has been collected."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, {*obj.package.members})


def markdown(text: str, public: set[str]) -> str:
    """A docstring of ours, for a Markdown that has equations in dollars and sections in Google's style."""

    def named(found: re.Match[str]) -> str:
        """A name in code, with a link where the reference has it."""
        name = found[1]
        return f"[`{name}`][fallline.{name}]" if name in public else f"`{name}`"

    text = re.sub(TABLE, table, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)", display, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":(?:class|func|meth|attr|mod|exc):`~?([^`]+)`", named, text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def display(found: re.Match[str]) -> str:
    """A formula on lines of its own, between double dollars."""
    indent, formula = found[1], " ".join(textwrap.dedent(found[2]).split())
    return f"{indent}$$\n{indent}{formula}\n{indent}$$"


def table(found: re.Match[str]) -> str:
    """A simple table of reStructuredText, between lines of equals signs; a first cell that is empty goes on."""
    columns = [slice(*column.span()) for column in re.finditer("=+", found[1])]
    columns[-1] = slice(columns[-1].start, None)
    rows: list[list[str]] = []
    for line in (found[2] + "\n" + found[3]).splitlines():
        cells = [line[column].strip() for column in columns]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
