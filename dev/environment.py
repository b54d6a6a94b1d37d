"""environment.yml for conda, from the versions in constraints.txt: `python dev/environment.py`.

It has what `fallline[bench]` needs, at the versions that the tests run with, all from pip: conda's own torch is
another build.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"

TEXT = """\
# What `fallline[bench]` needs, for conda: conda env create -f environment.yml && conda activate fallline
# Made by `python dev/environment.py` from constraints.txt, whose versions were tested together.
name: fallline
channels: [conda-forge]
dependencies:
  - python={python}
  - pip
  - pip:
{packages}
      - -e .
"""


def environment() -> str:
    """The file's text."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(Requirement(one).name): one for one in lines if one and not one.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    names = sorted(canonicalize_name(Requirement(one).name) for one in asked)
    packages = "\n".join(f"      - {pins[name]}" for name in names)
    return TEXT.format(python=PYTHON, packages=packages)


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment(), encoding="utf-8")
