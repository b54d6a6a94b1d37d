"""Options in a task's name: `cifar10-resnet8@epochs=2,batch=64`."""

from collections.abc import Callable
from typing import Any

HORIZON: dict[str, tuple[str, Callable[[str], float]]] = {
    "epochs": ("epochs", float),
    "batch": ("batch_size", int),
    "steps": ("steps", int),
    "evaluations": ("evaluations", int),
}
"""What `Task.resized` takes, by the options' names: its argument, and the kind of number."""


def split(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The task's own name, the arguments for `Task.resized`, and the options that are its own.

    Raises:
        ValueError: where an option has no value, or one of the wrong kind, or comes twice.
    """
    base, _, text = name.partition("@")
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    seen: set[str] = set()
    for option in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not value or key in seen:
            raise ValueError(f"the task {name!r}: options are written as in {base}@epochs=2,batch=64, not {option!r}")
        seen.add(key)
        try:
            if key in HORIZON:
                argument, number = HORIZON[key]
                common[argument] = number(value)
            else:
                own[key] = int(value) if value.lstrip("-").isdigit() else value
        except ValueError:
            raise ValueError(f"the task {name!r}: {key} is a number, not {value!r}") from None
    return base, common, own
