"""The process in which promises are tried: a job on its standard input, verdicts on its standard output.

An optimizer that crashes, hangs or calls `sys.exit` ends this process, and not the tool.
"""

import json
import os
import sys
from dataclasses import asdict

import torch

from fallline.bench.check.promises import PROMISES
from fallline.bench.check.subject import Subject
from fallline.bench.check.trial import READY, attempt


def main() -> None:
    """Try the promises that the job names, in its order, and write a line of JSON for each."""
    torch.set_num_threads(1)
    # What the optimizer prints must not come between the verdicts.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        job = json.loads(sys.stdin.readline())
        subject = Subject(**{**job["subject"], "arguments": tuple(job["subject"]["arguments"])})
        subject.settings.update({name: as_tuple(value) for name, value in subject.settings.items()})
        exec(subject.header("", ()), {})  # imports the optimizer, which is not to count in its first promise's time
        print(READY, file=lines, flush=True)
        for path, port in zip(job["promises"], job["ports"], strict=True):
            os.environ["MASTER_PORT"] = str(port)
            print(json.dumps(asdict(attempt(PROMISES[path], subject))), file=lines, flush=True)
        lines.flush()
        os._exit(0)  # threads that an optimizer, or a process group, has left behind must not keep it


def as_tuple(value: object) -> object:
    """A list as a tuple, all the way down: JSON has no tuples, and settings have no lists."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
