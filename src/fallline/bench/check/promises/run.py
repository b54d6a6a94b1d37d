# mypy: allow-untyped-defs, no-check-untyped-defs
"""How a loop runs it: closures, hooks, schedulers, a gradient scaler, accumulation."""

import torch

from fallline.bench.check.promises._promise import promise


@promise(unless_closure="its step evaluates the closure as often as it needs")
def closure(Optimizer, settings):
    """A closure is called once, with gradients enabled, and its value returned.

    Lightning and Accelerate pass one to every optimizer.
    """
    opt, calls = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings), []

    def closure():
        calls.append(torch.is_grad_enabled())
        (loss := (w - 2).square().mean()).backward()
        return loss

    value = opt.step(closure)
    assert calls == [True], f"the closure was called {len(calls)} times, with gradients enabled: {calls}"
    assert value == 1.0, f"step returned {value}, and not the closure's value"


@promise()
def step_hooks(Optimizer, settings, step):
    """Hooks before and after a step run once each.

    Profilers, loggers and other libraries watch steps with them.
    """
    opt, seen = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings), []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    step(opt, lambda: (w - 2).square())
    assert seen == ["before", "after"], f"of the hooks these ran: {seen}"


@promise()
def quiet(Optimizer, settings, step):
    """It warns of nothing and prints nothing.

    A deprecated call in a step fills the log of every user, and stops those who make warnings errors.
    """
    import contextlib
    import io
    import warnings

    with warnings.catch_warnings(), contextlib.redirect_stdout(said := io.StringIO()):
        warnings.simplefilter("error")
        opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
        step(opt, lambda: (w - 2).square(), times=3)
    assert not said.getvalue(), f"it printed {said.getvalue()!r}"


@promise()
def scheduler(Optimizer, settings, step):
    """Under LambdaLR it takes the steps that it takes with the same rates set by hand.

    The simplest scheduler is what most others are made of.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    hand = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 0.5**i)
    for _ in range(4):
        step(opt, lambda: (w - 2).square())
        step(hand, lambda: (v - 2).square())
        schedule.step()
        hand.param_groups[0]["lr"] *= 0.5
    assert torch.equal(w, v), "the scheduler's learning rate is not the one that is used"


@promise()
def one_cycle(Optimizer, settings, step):
    """OneCycleLR(cycle_momentum=False) sets the learning rate that is used.

    It writes several values into each group, and some classes refuse what they do not know.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    hand = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=6, cycle_momentum=False)
    for _ in range(4):
        hand.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
        step(opt, lambda: (w - 2).square())
        step(hand, lambda: (v - 2).square())
        schedule.step()
    assert torch.equal(w, v), "the scheduler's learning rate is not the one that is used"


@promise()
def warm_up(Optimizer, settings, step):
    """SequentialLR, a warm-up and then a decay, sets the learning rate that is used.

    The commonest schedule there is.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    hand = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    up, down = torch.optim.lr_scheduler.LinearLR(opt, 0.1, 1.0, 2), torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    schedule = torch.optim.lr_scheduler.SequentialLR(opt, [up, down], milestones=[2])
    for _ in range(4):
        hand.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
        step(opt, lambda: (w - 2).square())
        step(hand, lambda: (v - 2).square())
        schedule.step()
    assert torch.equal(w, v), "the scheduler's learning rate is not the one that is used"


@promise(needs="lr", may_refuse=True)
def lr_as_a_tensor(Optimizer, settings, step):
    """A learning rate that is a tensor does what the number does, under a scheduler too, or is refused in words.

    A number that changes makes torch.compile and CUDA graphs start over; a tensor does not.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.randn(3, 3).double())], **{**settings, "lr": torch.tensor(0.125)})
    plain = Optimizer([v := torch.nn.Parameter(w.detach().clone())], **{**settings, "lr": 0.125})
    schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in (opt, plain)]
    for _ in range(3):
        step(opt, lambda: (w - 2).square())
        step(plain, lambda: (v - 2).square())
        schedules[0].step()
        schedules[1].step()
    torch.testing.assert_close(w, v, rtol=1e-5, atol=1e-5)


@promise(may_refuse=True)
def a_negative_lr_in_mid_run(Optimizer, settings, step):
    """A learning rate that falls below 0 in mid run leaves finite weights, or is refused in words before they move.

    Schedules run past their end; a root of the rate turns all weights into NaN for good.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    step(opt, lambda: (w - 2).square(), times=3)
    before, opt.param_groups[0]["lr"] = w.detach().clone(), -1e-3
    try:
        step(opt, lambda: (w - 2).square())
    except Exception:
        assert torch.equal(w, before), "it refused a negative learning rate after it had moved"
        raise
    assert w.isfinite().all(), "a step with a negative learning rate has left weights that are not finite"


@promise()
def a_nan_lr_in_mid_run(Optimizer, settings, step):
    """A learning rate that is NaN for one step shows in the weights or does no harm, whether it is refused or not.

    The worst are weights that look sound and no longer train.
    """
    import contextlib

    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    step(opt, lambda: (w - 2).square(), times=3)
    lr, opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"], float("nan")
    with contextlib.suppress(Exception):
        step(opt, lambda: (w - 2).square())
    before, opt.param_groups[0]["lr"] = w.detach().clone(), lr
    step(opt, lambda: (w - 2).square(), times=3)
    assert w.isnan().all() or not torch.equal(w, before), "a step with the learning rate NaN has ended all training"


@promise(unless_closure="GradScaler refuses closures")
def grad_scaler(Optimizer, settings, step, given):
    """With torch.amp.GradScaler it takes the steps that it takes without.

    Training in float16 needs the scaler; where a step reads losses, scaled gradients must not be taken for theirs.
    """
    opt = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    plain = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        opt.zero_grad()
        scaler.scale((losses := (w - 2).square()).mean()).backward()
        scaler.step(opt, **given(losses))
        scaler.update()
        step(plain, lambda: (v - 2).square())
    torch.testing.assert_close(w, v)


@promise(unless_closure="GradScaler refuses closures")
def grad_scaler_skips(Optimizer, settings, step, given):
    """A step that GradScaler skips leaves nothing behind: the run goes on as if the batch had not been.

    Runs in float16 begin with a few of them, while the scale is found.
    """
    opt, plain = (Optimizer([torch.nn.Parameter(torch.ones(3, 3))], **settings) for _ in range(2))
    (w,), (v,) = (one.param_groups[0]["params"] for one in (opt, plain))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((losses := (w - 2).square() * torch.inf).mean()).backward()
    scaler.step(opt, **given(losses))
    scaler.update()
    assert torch.equal(w, torch.ones(3, 3)), "a skipped step moved a parameter"
    step(opt, lambda: (w - 2).square(), times=3)
    step(plain, lambda: (v - 2).square(), times=3)
    assert torch.equal(w, v), "a skipped step changed those after it"


@promise(needs="maximize", may_refuse=True)
def maximize(Optimizer, settings, step):
    """With `maximize=True` it climbs as it descends on the negative, or refuses in words.

    The sign must be everywhere, in moments and in weight decay too.
    """
    up = Optimizer([w := torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "maximize": True})
    down = Optimizer([v := torch.nn.Parameter(torch.ones(3, 3))], **{**settings, "maximize": False})
    step(up, lambda: -(w - 2).square(), times=3)
    step(down, lambda: (v - 2).square(), times=3)
    torch.testing.assert_close(w, v)


@promise(unless_closure="its closure makes the gradients")
def accumulation(Optimizer, settings, given):
    """Gradients accumulated over two halves of a batch train as those of the batch, up to rounding.

    Whatever hooks into the backward pass sees two of them.
    """

    x = torch.linspace(-1, 2, 24).sin().double().view(8, 3)

    def train(parts, nudge=0.0):
        opt = Optimizer([w := torch.nn.Parameter(torch.eye(3).double() + nudge)], **settings)
        for _ in range(3):
            opt.zero_grad()
            for part in x.chunk(parts):
                ((part @ w).square().mean() / parts).backward()
            opt.step(**given((x @ w).square()))
        return w

    assert torch.dist(train(2), train(1)) < 1e-7 + 100 * torch.dist(train(1, 1e-15), train(1)), "the weights differ"
