"""Names of torch that are not public, and why each is needed: if a new torch lacks one, this file says so at once."""

import torch
from torch._compile import _disable_dynamo as disable_dynamo  # as torch.optim does: the public one imports the compiler
from torch.nn.modules.loss import _Loss as Criterion  # the base of all criteria, which has no public name

__all__ = ["Criterion", "disable_dynamo", "in_backward", "in_functorch", "traced"]


def in_functorch() -> bool:
    """Whether this is within a transform of torch.func, which has no question for that."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_backward() -> bool:
    """Whether a backward pass is running: a step in a hook of a parameter must know."""
    return torch._C._current_graph_task_id() != -1


def traced() -> bool:
    """Whether a module is not run but traced by torch.jit, or exported."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
