"""What a picture is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Drawn:
    """A picture as a command of the gallery makes it."""

    svg: str
    """The file."""

    summary: tuple[str, ...]
    """Its numbers in words, a line each."""

    seconds: float | None = None
    """Until its animation begins anew; None where nothing moves."""
