"""The command `fallline`. This module imports the standard library alone, so that it can say what to install."""

import errno
import importlib.util
import os
import sys

NEEDS = ("jinja2", "numpy", "plotly", "pooch", "rich", "schedulefree", "scipy", "sklearn", "typer")
"""What the extra `fallline[bench]` brings, under the names to import."""


def main() -> None:
    """Run the command line, or say in one sentence what is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f'The command fallline needs its extra, pip install "fallline[bench]" (missing: {", ".join(missing)}).'
        )
    from fallline.bench.cli.root import app

    try:
        try:
            app(prog_name="fallline")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try once more, and complain
        sys.exit(f"Error: the disk is full: {error.filename or 'what this command prints'} cannot be written")


if __name__ == "__main__":
    main()
