"""The command line in a test: called in this process, or started in another."""

import os
import re
from pathlib import Path

from typer.testing import CliRunner

import fallline
from fallline.bench.cli.root import app

HERE = Path(__file__).parent


def call(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"})
    return result.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def environment():
    paths = [str(HERE), str(Path(fallline.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80"}
