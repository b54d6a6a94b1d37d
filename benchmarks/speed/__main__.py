"""`python benchmarks/speed`: the command."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # where this package lies; the files of --with import it too

from speed.command import app  # noqa: E402 - found there

if __name__ == "__main__":
    app(prog_name="python benchmarks/speed")
