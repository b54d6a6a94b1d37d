"""What an optimizer tells of itself while it trains."""

import math
from typing import Any

import torch
from torch import Tensor

import fallline


@torch.no_grad()
def readings(optimizer: Any) -> dict[str, float]:
    """A few numbers by name; nothing for other people's optimizers, nor what is not known yet.

    `P` and `R` of the KOALAs: variance of a weight, of the measured loss. `rho` and `temperature` of CoolMomentum:
    momentum, mean squared velocity in units of the loss. `eta` and `KL` of arTuRO: multiplier and length of the last
    step. `scale` of LODO: how much its networks stretch the momentum, |G m| / |m|. `skipped`: steps turned into
    nothing, once there are some.

    It reads the device, which an accelerator waits for, and takes a pass over the weights for `temperature` and
    `scale`. Where the model is sharded all ranks must call it.
    """
    if not isinstance(optimizer, fallline.Optimizer):
        return {}
    found: dict[str, Tensor] = {}
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
    found["skipped"] = optimizer.skipped
    names, values = list(found), [value.detach().reshape(()).to(torch.float32) for value in found.values()]
    read = dict(zip(names, torch.stack(values).tolist(), strict=True))  # one wait for all of them
    if not read["skipped"]:
        del read["skipped"]
    return {name: value for name, value in read.items() if math.isfinite(value)}


def stretch(optimizer: fallline.LODO) -> Tensor:
    """|G m| / |m| over all networks, with their learning rates: 0-D tensor, NaN while the momentum is zero."""
    momenta = [net.state["momentum"] for net in optimizer.networks]
    moved = [net.apply(m) for net, m in zip(optimizer.networks, momenta, strict=True)]
    norms = [torch.stack([v.norm() for v in vectors]).norm() for vectors in (moved, momenta)]
    ratio: Tensor = norms[0] / norms[1]
    return ratio
