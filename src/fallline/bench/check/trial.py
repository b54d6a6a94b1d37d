"""One promise, put to one optimizer in this process: its program is run, and what it raises is judged."""

import dis
import gc
import linecache
import re
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import torch

from fallline.bench.check.promises._promise import Promise
from fallline.bench.check.subject import Subject

READY = "ready"
"""What a process that tries promises says before it begins."""

SUBJECT = "subject"
"""Under which name a process answers that describes an optimizer."""


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
        outcome, reason = judged(error, promise, subject, name)
    seconds = time.perf_counter() - start
    reset()
    if "torch._dynamo" in sys.modules:  # something was compiled: what is compiled next must not count on top of it
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


def judged(error: BaseException, promise: Promise, subject: Subject, name: str) -> tuple[Outcome, str]:
    """What an error out of a program means, and in which words."""
    if (promise.demands or promise.may_refuse) and in_words(error, name):
        if promise.demands:
            return Outcome.holds, ""
        if trains(subject):  # otherwise it would refuse everything alike
            return Outcome.refused, describe_error(error, name)
    return Outcome.fails, describe_error(error, name)


def trains(subject: Subject) -> bool:
    """Whether an optimizer takes steps where nothing is peculiar: with a float32 matrix."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(subject.header("", ["step"]) + PLAIN, {"__name__": "__main__"})
    except Exception:
        return False
    return True


PLAIN = """opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3))], **settings)
step(opt, lambda: (w - 1).square(), times=3)
"""
"""A program in which there is nothing to refuse."""


def describe_error(error: BaseException, name: str) -> str:
    """An error in one line: an assertion's words, or kind, words and the line of the program that it came from."""
    said = words(error)
    trace = innermost(error)
    if isinstance(error, AssertionError) and trace is not None and trace.tb_frame.f_code.co_filename == name:
        return shortened(said)
    kind = type(error).__name__
    if difference := re.search(r"Greatest absolute difference: (\S+)", said):
        said = f"tensors that should be equal differ by up to {float(difference[1]):.2g}"
        kind = ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    where = f" (at `{frames[-1].line}`)" if frames else ""
    return ": ".join(part for part in (kind, shortened(said)) if part) + where


def words(error: BaseException) -> str:
    """What an error says, in one line; nothing if its own text cannot be had."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def shortened(said: str) -> str:
    """At most 300 characters of a line."""
    return said if len(said) <= 300 else said[:297] + "..."


def innermost(error: BaseException) -> TracebackType | None:
    """Where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def in_words(error: BaseException, name: str) -> bool:
    """Whether an error is a refusal in words: somebody wrote it, and it says something.

    That is an `assert`, whose condition stands in the traceback, or a `raise`: with a message, or of an exception whose
    name is one, such as `NotImplementedError` or a class of the optimizer's own. What comes out of torch's operators,
    of torch's own Python beside torch.optim, or of the program itself is no refusal. Nor is a failed look-up.
    """
    trace = innermost(error)
    if trace is None or not isinstance(error, Exception) or isinstance(error, LookupError | AttributeError):
        return False
    frame = trace.tb_frame
    home = frame.f_globals.get("__name__", "")
    if frame.f_code.co_filename == name or (home.startswith("torch.") and not home.startswith("torch.optim.")):
        return False
    if dis.opname[frame.f_code.co_code[trace.tb_lasti]] != "RAISE_VARARGS":
        return False
    own = type(error).__module__ != "builtins" or isinstance(error, NotImplementedError | AssertionError)
    return own or any(letter.isalpha() for letter in words(error))
