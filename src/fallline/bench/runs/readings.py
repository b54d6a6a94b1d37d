"""What an optimizer tells of itself while it trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import fallline


@torch.no_grad()
def readings(optimizer: Any, own: Callable[[Any], Mapping[str, Tensor]] | None = None) -> dict[str, float]:
    """A few numbers by name; nothing for other people's optimizers without a card's `own`, nor what is not known yet.

    `P` and `R` of the KOALAs: variance of a weight, of the measured loss. `rho` and `temperature` of CoolMomentum:
    momentum, mean squared velocity in units of the loss. `eta` and `KL` of arTuRO: multiplier and length of the last
    step. `scale` of LODO: how much its networks stretch the momentum, |G m| / |m|. `skipped`: steps turned into
    nothing, once there are some.

    It reads the device, which an accelerator waits for, and takes a pass over the weights for `temperature` and
    `scale`. Where the model is sharded all ranks must call it.
    """
    found: dict[str, Tensor] = dict(own(optimizer)) if own else {}
    if isinstance(optimizer, fallline.MomentumKOALA):
        found["P"] = optimizer.covariance[0, 0]
    elif isinstance(optimizer, fallline.VanillaKOALA):
        found["P"] = optimizer.covariance
    if isinstance(optimizer, fallline.KOALA):
        found["R"] = optimizer.measurement_noise
    if isinstance(optimizer, fallline.CoolMomentum):
        found |= {"rho": optimizer.rho.mean(), "temperature": optimizer.kinetic_temperature.mean()}
    if isinstance(optimizer, fallline.ArTuRO):
        found |= {"eta": optimizer.eta.amax(), "KL": optimizer.kl.amax()}
    if isinstance(optimizer, fallline.LODO):
        found["scale"] = stretch(optimizer)
    if isinstance(optimizer, fallline.Optimizer):
        found["skipped"] = optimizer.skipped
    if not found:
        return {}
    names, values = list(found), [value.detach().reshape(()).to(torch.float32) for value in found.values()]
    read = dict(zip(names, torch.stack(values).tolist(), strict=True))  # one wait for all of them
    return {name: value for name, value in read.items() if math.isfinite(value) and (value or name != "skipped")}


def stretch(optimizer: fallline.LODO) -> Tensor:
    """|G m| / |m| over all networks, with their learning rates: 0-D tensor, NaN while the momentum is zero."""
    momenta = [net.state["momentum"] for net in optimizer.networks]
    moved = [net.apply(m) for net, m in zip(optimizer.networks, momenta, strict=True)]
    norms = [torch.stack([v.norm() for v in vectors]).norm() for vectors in (moved, momenta)]
    ratio: Tensor = norms[0] / norms[1]
    return ratio
