"""A race's report for papers: Markdown, tidy tables as CSV or Parquet, and figures for print as PNG. It never trains.

All files of an export are made before the first is written, and each is put in its place in one move.
"""

from pathlib import Path

from fallline.bench.common.files import put, stem
from fallline.bench.protocol.analysis import Results
from fallline.bench.report import markdown
from fallline.bench.report.frames import as_csv, as_parquet, frames
from fallline.bench.report.prints import as_png, draw

FORMATS = ("md", "csv", "parquet", "png")


def export(results: Results, format: str, folder: Path) -> list[Path]:
    """Write the report of a race, finished or not, and return the files written.

    Args:
        results: the race.
        format: `md`, `csv`, `parquet` or `png`.
        folder: where to; made where it is not there.

    Raises:
        ValueError: another format, a library that is missing, or nothing to draw yet; no file is written then.
        OSError: a file cannot be written.
    """
    name = stem(results.design.tasks)
    files: dict[str, str | bytes]
    if format == "md":
        files = {f"{name}.md": markdown.document(results)}
    elif format == "csv":
        files = {f"{name}-{kind}.csv": as_csv(frame) for kind, frame in frames(results).items()}
    elif format == "parquet":
        files = {f"{name}-{kind}.parquet": as_parquet(frame, results) for kind, frame in frames(results).items()}
    elif format == "png":
        files = {f"{name}-{kind}.png": as_png(figure, results) for kind, figure in draw(results).items()}
        if not files:
            raise ValueError("no run of this race has finished: there is nothing to draw")
    else:
        raise ValueError(f"a report is written as {', '.join(FORMATS)}, not {format!r}")
    return [put(folder / file, content) for file, content in files.items()]
