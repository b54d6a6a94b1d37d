"""The process in which promises are tried: a job on its standard input, answers on its standard output.

An optimizer that crashes, hangs or calls `sys.exit` ends this process, and not the tool.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from fallline.bench.check.promises import PROMISES
from fallline.bench.check.subject import Loss, Subject, get_subject
from fallline.bench.check.trial import READY, SUBJECT, Outcome, attempt


def main() -> None:
    """Try the promises that the job names, in its order, or describe an optimizer; write a line of JSON for each."""
    me, parent = os.getpid(), os.getppid()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, Linux is to end this process first
    torch.set_num_threads(1)
    # What the optimizer prints must not come between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        job = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_the_tool, daemon=True).start()
        for answer in answers(job, lines):
            if os.getpid() != me:
                os._exit(1)  # the optimizer forked, and this is the copy
            time.sleep(0.002)  # a parent that was ended takes a moment to go
            orphaned = os.getppid() != parent
            if orphaned:
                answer |= {"outcome": Outcome.fails, "reason": "it ended the process that had started it"}
            print(json.dumps(answer), file=lines, flush=True)
            if orphaned:
                break  # others take over, and what the next promise takes must not be laid to this one
        os._exit(0)  # threads that an optimizer, or a process group, has left behind must not keep it


def answers(job: dict[str, Any], lines: IO[str]) -> Any:
    """What the job asks for, one after the other."""
    if "describe" in job:
        print(READY, file=lines, flush=True)
        name, settings, loss = job["describe"]
        try:
            found = get_subject(name, as_tuples(settings), loss and Loss(loss))
            yield {"promise": SUBJECT, "subject": asdict(found)}
        except ValueError as error:
            yield {"promise": SUBJECT, "error": str(error)}
        return
    subject = read_subject(job["subject"])
    exec(subject.header("", ()), {})  # imports the optimizer, which is not to count in its first promise's time
    print(READY, file=lines, flush=True)
    for path, port in zip(job["promises"], job["ports"], strict=True):
        os.environ["MASTER_PORT"] = str(port)
        yield asdict(attempt(PROMISES[path], subject))


def end_with_the_tool() -> None:
    """When the tool is gone, and with it the other end of the standard input, end with all of the group."""
    if os.read(0, 1) == b"":
        os.killpg(0, signal.SIGKILL)


def read_subject(written: dict[str, Any]) -> Subject:
    """A subject out of JSON."""
    return Subject(**{**written, "arguments": tuple(written["arguments"]), "settings": as_tuples(written["settings"])})


def as_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings out of JSON, with lists as tuples: JSON has no tuples, and settings have no lists."""
    return {name: as_tuple(value) for name, value in settings.items()}


def as_tuple(value: object) -> object:
    """A list as a tuple, all the way down."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
