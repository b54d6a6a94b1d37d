"""One run of one task: `fallline train TASK --optim NAME`.

`plan` says what was asked for, `loop` is the loop, `processes` are the ranks it is spread over, `saving` is the
checkpoint, `readings` what an optimizer says of itself, `logs` and `screen` where all this goes, `run` a process from
its start to its end.
"""

from fallline.bench.runs.training.plan import Plan
from fallline.bench.runs.training.readings import readings
from fallline.bench.runs.training.run import run

__all__ = ["Plan", "readings", "run"]
