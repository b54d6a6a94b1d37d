"""`python -m fallline.bench.speed`: the same as `fallline bench step`, where not all of the extra is installed."""

from fallline.bench.speed.command import app

if __name__ == "__main__":
    app(prog_name="python -m fallline.bench.speed")
