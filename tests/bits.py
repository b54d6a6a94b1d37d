"""Equality to the bit, of anything that holds tensors."""

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
