"""CoolMomentum (Borysenko & Byshkin, 2021) in plain Python, by the article's alpha and by the closed forms."""

from collections.abc import Callable, Sequence

Schedule = Callable[[float, float], float]
"""Maps (rho_0, s = t/S) to rho, for 0 <= s < 1."""


def exponential(rho_0: float, s: float) -> float:
    """1/(1 - rho) decays exponentially: the article's schedule."""
    return 1 - (1 - rho_0) ** (1 - s)


def exponential_temperature(rho_0: float, s: float) -> float:
    """(1 + rho)/(1 - rho), hence the temperature, decays exponentially."""
    u = ((1 - rho_0) / (1 + rho_0)) ** (1 - s)
    return (1 - u) / (1 + u)


def linear(rho_0: float, s: float) -> float:
    """1/(1 - rho), hence the temperature, decays linearly (the Demon rule)."""
    return rho_0 * (1 - s) / (1 - rho_0 * s)


SCHEDULES: dict[str, Schedule] = {
    "exponential": exponential,
    "exponential_temperature": exponential_temperature,
    "linear": linear,
}


def alpha_of(rho_0: float, cool_steps: float) -> float:
    """The article's alpha = (1 - rho_0)^(1/S)."""
    return (1 - rho_0) ** (1 / cool_steps)


def rho_by_alpha(rho_0: float, alpha: float, t: int) -> float:
    """The article's own form of the exponential schedule: alpha is multiplied t times, as its program does."""
    power = 1.0
    for _ in range(t):
        power *= alpha
    return max(0.0, 1 - (1 - rho_0) / power)


def rho_at(schedule: str, rho_0: float, cool_steps: float | None, t: int, hold_steps: int = 0) -> float:
    """Momentum of the call number t, counted from 0: rho_0 while held, cooled over `cool_steps`, then 0 for ever."""
    if cool_steps is None or t <= hold_steps:
        return rho_0
    if t >= hold_steps + cool_steps:
        return 0.0
    return SCHEDULES[schedule](rho_0, (t - hold_steps) / cool_steps)


class CoolMomentum:
    """One list of parameters `x`, its displacement `d`, and the number `t` of calls made."""

    def __init__(
        self,
        x: Sequence[float],
        lr: float,
        rho_0: float,
        cool_steps: float | None,
        *,
        schedule: str = "exponential",
        hold_steps: int = 0,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        self.x, self.d, self.t = list(x), [0.0] * len(x), 0
        self.lr, self.rho_0, self.cool_steps = lr, rho_0, cool_steps
        self.schedule, self.hold_steps = schedule, hold_steps
        self.weight_decay, self.decoupled = weight_decay, decoupled

    @property
    def rho(self) -> float:
        """Momentum of the coming call."""
        return rho_at(self.schedule, self.rho_0, self.cool_steps, self.t, self.hold_steps)

    def step(self, gradient: Sequence[float]) -> None:
        """d = rho d - a (g + weight_decay x);  x = x + d, with a = lr (1 + rho)/2."""
        rho = self.rho
        a = self.lr * (1 + rho) / 2
        for i, g in enumerate(gradient):
            x = self.x[i]
            if self.decoupled:
                self.d[i] = rho * self.d[i] - a * g
                self.x[i] = x - self.lr * self.weight_decay * x + self.d[i]
            else:
                self.d[i] = rho * self.d[i] - a * (g + self.weight_decay * x)
                self.x[i] = x + self.d[i]
        self.t += 1


def temperature(rho: float) -> float:
    """Temperature at equal gradient noise, in units of its value at rho = 0."""
    return (1 + rho) / (1 - rho)
