"""Install what is in dist/ as a user does, each in an environment of its own, and use it: `python dev/smoke.py`.

First the library alone, then the race with it. Run away from the source, which must not be found in its place.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

LIBRARY = """
import importlib.metadata, importlib.util, torch, fallline
assert importlib.util.find_spec("scipy") is None, "the library alone needs no more than torch"
assert fallline.__version__ == importlib.metadata.version("fallline")
for name in fallline.list_optimizers():
    if name in fallline._registry.OURS:
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = fallline.create_optimizer(name, [w])
        for _ in range(3):
            optimizer.zero_grad()
            loss = w.square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        assert w.isfinite().all(), name
"""


def run(*command: str | Path, folder: Path) -> None:
    """What fails says why, and ends it all."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def smoke(distribution: Path) -> None:
    """In an environment that goes away again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        bin = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        install = (bin / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
        run(*install, "torch", distribution, folder=folder)
        run(bin / "python", "-c", LIBRARY, folder=folder)
        run(*install, f"{distribution}[bench]", folder=folder)
        race = ("race", "digits@epochs=2", "--optimizers", "sgd,koala-m", "--trials", "2", "--seeds", "3")
        for arguments in (("list",), race, ("repro", "--list")):
            run(bin / "fallline", *arguments, folder=folder)
        assert list((folder / "runs").glob("*.html")), "the race has written its report"
    print(f"{distribution.name}: installed, and it works")


if __name__ == "__main__":
    found = sorted((ROOT / "dist").glob("fallline-*"))
    if not found:
        raise SystemExit("nothing in dist/: make release builds it first")
    for one in found:
        smoke(one)
