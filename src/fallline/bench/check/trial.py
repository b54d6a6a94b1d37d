"""One promise, put to one optimizer in this process: its program is run, and what it raises is judged."""

import dis
import gc
import linecache
import re
import time
import traceback
import warnings
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import torch

from fallline.bench.check.promise import Promise
from fallline.bench.check.subject import Subject

READY = "ready"
"""What a process that tries promises says before it begins."""


class Outcome(StrEnum):
    """What came of a promise."""

    holds = "holds"
    refused = "refused in words"
    fails = "fails"
    absent = "does not apply"
    excused = "excused"


@dataclass(frozen=True)
class Verdict:
    """What came of a promise for one optimizer."""

    promise: str
    """Its full name, `group/name`."""
    outcome: Outcome
    reason: str = ""
    """One line: what was raised and where, why it does not apply, or what excuses it; empty where it holds."""
    seconds: float = 0.0
    """How long the program ran."""

    @property
    def broken(self) -> bool:
        """Whether this makes the check fail."""
        return self.outcome is Outcome.fails


def program(promise: Promise, subject: Subject) -> str:
    """The whole program: what is run, and what is printed where it fails."""
    start = f'"""{promise.says}."""\n\n'
    if promise.ranks > 1:
        start = f"# torchrun --nproc-per-node {promise.ranks} THIS_FILE.py\n{start}"
    return start + subject.header(promise.imports, promise.uses) + promise.text + "\n"


def absent(promise: Promise, subject: Subject) -> str | None:
    """Why a promise does not apply to this optimizer, if so."""
    if promise.needs is not None and promise.needs not in subject.arguments:
        return f"has no argument {promise.needs}"
    if promise.unless_closure is not None and subject.loss == "closure":
        return promise.unless_closure
    return None


def attempt(promise: Promise, subject: Subject) -> Verdict:
    """Run a promise's program here, and judge what comes of it. Nothing that it raises gets out, but Ctrl-C."""
    if (reason := absent(promise, subject)) is not None:
        return Verdict(promise.path, Outcome.absent, reason)
    source, name = program(promise, subject), f"<{promise.path}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    outcome, reason = Outcome.holds, ""
    reset()
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(source, name, "exec"), {"__name__": "__main__"})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an optimizer may even call sys.exit
        reason = told(error, name)
        outcome = Outcome.refused if in_words(error, promise.refusal) else Outcome.fails
    seconds = time.perf_counter() - start
    reset()
    if "torch.compile" in source:
        torch.compiler.reset()
    return Verdict(promise.path, outcome, reason, seconds)


def reset() -> None:
    """Undo what a program, or an optimizer in it, may have left behind in torch."""
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.unfreeze()


def told(error: BaseException, name: str) -> str:
    """An error in one line: an assertion's words, or kind, words and the line of the program that it came from."""
    said = " ".join(str(error).split())
    trace = innermost(error)
    if isinstance(error, AssertionError) and trace is not None and trace.tb_frame.f_code.co_filename == name:
        return said
    kind = type(error).__name__
    if difference := re.search(r"Greatest absolute difference: (\S+)", said):
        said = f"tensors that should be equal differ by up to {float(difference[1]):.2g}"
        kind = ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    where = f" (at `{frames[-1].line}`)" if frames else ""
    said = said if len(said) <= 300 else said[:297] + "..."
    return ": ".join(part for part in (kind, said) if part) + where


def innermost(error: BaseException) -> TracebackType | None:
    """Where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def in_words(error: BaseException, refusal: str | None) -> bool:
    """Whether an error is a refusal that somebody wrote: by a `raise` of the optimizer's, in words that match.

    An error out of torch's operators, whether from a call or from torch's own Python, is an accident.
    """
    if refusal is None or isinstance(error, AssertionError) or not isinstance(error, Exception):
        return False
    trace = innermost(error)
    if trace is None:
        return False
    home = trace.tb_frame.f_globals.get("__name__", "")
    if home.startswith("torch.") and not home.startswith("torch.optim."):
        return False
    operation = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[operation] == "RAISE_VARARGS" and re.search(refusal, str(error)) is not None
