"""Equality to the bit, of anything that holds tensors; and what of an optimizer is compared so."""

import copy
import io
from typing import Any

import torch
from torch import Tensor


def assert_bits(a: Any, b: Any) -> None:
    """Equal to the bit, types and dtypes included."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_bits(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_bits(x, y)
    else:
        assert a == b


def everything(opt: torch.optim.Optimizer) -> Any:
    """Parameters, state and settings, copied."""
    params = [p.detach().clone() for group in opt.param_groups for p in group["params"]]
    return [params, copy.deepcopy(opt.state_dict())]


def reloaded(state_dict: dict[str, Any]) -> Any:
    """Saved by torch.save, and read as torch.load reads what it need not trust."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
