"""The promises of torch's own optimizers, run over our entries by torch's own machinery."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bits import assert_bits, everything, reloaded
from optimizer_infos import optim_db
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_device_type import instantiate_device_type_tests, onlyCPU, onlyCUDA
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    OptimizerInfo,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optims,
)
from torch.testing._internal.common_utils import TestCase

import fallline

every_info = optims(optim_db)


class Problem:
    """Linear regression of one input: ``weight`` [10, 5] and ``bias`` [10], whose loss is a mean of squares."""

    def __init__(self, device: Any, dtype: torch.dtype, contiguous: bool = True) -> None:
        g = torch.Generator().manual_seed(0)
        weight, bias, x = (
            torch.randn(10, 5, 2, generator=g),
            torch.randn(10, 2, generator=g),
            torch.randn(5, generator=g),
        )
        weight, bias = (t.to(device, dtype)[..., 0] for t in (weight, bias))
        if contiguous:
            weight, bias = weight.clone(memory_format=torch.contiguous_format), bias.clone()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        assert self.weight.is_contiguous() == contiguous
        self.x = x.to(device, dtype)

    def params(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    def loss(self) -> Tensor:
        return (self.weight @ self.x.to(self.weight.dtype) + self.bias).abs().square().mean()

    def closure(self, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            opt.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure

    def train(self, opt: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            opt.step(self.closure(opt))

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params()]


def made(info: OptimizerInfo, device: Any, dtype: torch.dtype, fused: bool = False, **layout: Any) -> Any:
    """A fresh problem and optimizer for each input of an entry; with ``fused``, also in every way to run it."""
    all_inputs = (
        _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, info)
        if fused
        else info.optim_inputs_func(device=device)
    )
    for one in all_inputs:
        problem = Problem(device, dtype, **layout)
        yield one, problem, info.optim_cls(problem.params(), **one.kwargs)


def close(a: Any, b: Any, tol: float) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


class TestOptimizerInfos(TestCase):
    """Each test runs over all inputs of an entry, on each device that torch finds."""

    # -- the entries ------------------------------------------------------------------------------------------

    @onlyCPU
    @every_info
    def test_every_setting_is_varied_and_none_says_how_to_run(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        settings = inspect.signature(optim_info.optim_cls).parameters.keys() - {"params", "generator"}
        kwargs = [one.kwargs for one in optim_info.optim_inputs_func(device)]
        assert {name for one in kwargs for name in one} == settings - {"fused"}
        defaults = optim_info.optim_cls([torch.zeros(1)]).defaults
        for name in settings - {"fused"}:
            assert any(one.get(name, defaults[name]) is not defaults[name] for one in kwargs), name

    @onlyCPU
    @every_info
    def test_an_entry_says_what_the_class_takes(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        taken = inspect.signature(optim_info.optim_cls).parameters.keys()
        flags = {"fused", "foreach", "differentiable"}
        assert flags & taken == set(optim_info.supported_impls) == {"fused"}
        assert ("capturable" in taken) == optim_info.has_capturable_arg
        assert {"maximize", "lr", "weight_decay"} <= taken

    @every_info
    def test_wrong_inputs_raise(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for error in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            wrong = error.optimizer_error_input
            params = Problem(device, dtype).params() if wrong.params is None else wrong.params
            if error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
                if issubclass(error.error_type, Warning):
                    with pytest.warns(error.error_type, match=error.error_regex):
                        optim_info.optim_cls(params, **wrong.kwargs)
                else:
                    with pytest.raises(error.error_type, match=error.error_regex):
                        optim_info.optim_cls(params, **wrong.kwargs)
            else:
                opt = optim_info.optim_cls(params, **wrong.kwargs)
                for p in params:
                    p.grad = torch.ones_like(p)
                before = everything(opt)
                with pytest.raises(error.error_type, match=error.error_regex):
                    opt.step()
                assert_bits(before, everything(opt))

    @every_info
    def test_it_can_be_printed(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for _, problem, opt in made(optim_info, device, dtype, fused=True):
            before = repr(opt)
            assert before.startswith(f"{optim_info.name} (\nParameter Group 0")
            problem.train(opt, 1) if not opt.defaults["fused"] else None
            assert f"lr: {opt.param_groups[0]['lr']}" in repr(opt)

    # -- the direction ----------------------------------------------------------------------------------------

    def _goes_right(self, problem: Problem, opt: torch.optim.Optimizer, schedulers: list[Any], steps: int) -> None:
        """The mean of the losses on the way: one with momentum may be back where it began at any one step."""
        first, losses = problem.loss().item(), []
        for _ in range(steps):
            losses.append(opt.step(problem.closure(opt)).item())
            for scheduler in schedulers:
                scheduler.step(losses[-1]) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        mean = sum(losses) / steps
        assert mean > first if opt.param_groups[0]["maximize"] else mean < first, (first, losses)

    @every_info
    def test_it_goes_in_the_right_direction(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for contiguous in (True, False):
            for one, problem, opt in made(optim_info, device, dtype, contiguous=contiguous):
                with self.subTest(one.desc):
                    self._goes_right(problem, opt, [], 15)

    @every_info
    def test_it_goes_in_the_right_direction_with_schedulers(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        """Each input with two of the entry's schedulers, in turns."""
        for i, (one, problem, opt) in enumerate(made(optim_info, device, dtype)):
            for k in (0, 2):
                make_schedulers = optim_info.scheduler_inputs[(i + k) % len(optim_info.scheduler_inputs)]
                own, its_opt = copy.deepcopy((problem, opt))
                with self.subTest(one.desc):
                    self._goes_right(own, its_opt, [make(its_opt) for make in make_schedulers], 10)

    @every_info
    def test_groups_go_in_the_right_direction(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for i, one in enumerate(optim_info.optim_inputs_func(device=device)):
            problem = Problem(device, dtype)
            lr = torch.tensor(0.015, device=device) if i % 2 else 0.015
            groups = [{"params": [problem.weight], "lr": lr}, {"params": [problem.bias]}]
            opt = optim_info.optim_cls(groups, **one.kwargs)
            with self.subTest(one.desc):
                self._goes_right(problem, opt, [make(opt) for make in optim_info.scheduler_inputs[0]], 12)

    @every_info
    def test_weight_decay_of_a_group_pulls_to_zero(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        norms = []
        for decay in (0.0, 1.0):
            problem = Problem(device, dtype)
            groups = [{"params": [problem.weight], "weight_decay": decay}, {"params": [problem.bias]}]
            problem.train(optim_info.optim_cls(groups), 10)
            norms.append(problem.weight.norm().item())
        assert norms[1] < norms[0]

    # -- equalities -------------------------------------------------------------------------------------------

    @every_info
    def test_a_tensor_lr_is_a_number(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for one, problem, opt in made(optim_info, device, torch.float64):
            other = Problem(device, torch.float64)
            lr = torch.tensor(float(opt.defaults["lr"]), dtype=torch.float64, device=device)
            problem.train(opt, 5)
            other.train(optim_info.optim_cls(other.params(), **{**one.kwargs, "lr": lr}), 5)
            close(problem.values(), other.values(), 1e-6)

    @every_info
    def test_noncontiguous_parameters_are_as_contiguous_ones(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        runs = []
        for contiguous in (True, False):
            runs.append([])
            for _, problem, opt in made(optim_info, device, torch.float64, contiguous=contiguous):
                problem.train(opt, 5)
                runs[-1].append(problem.values())
        close(*runs, 1e-11)

    @every_info
    def test_a_complex_parameter_is_two_real_ones(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for one in optim_info.optim_inputs_func(device=device):
            z = nn.Parameter(torch.randn(3, 3, dtype=torch.complex128, device=device))
            r = nn.Parameter(torch.view_as_real(z.detach()).clone())
            opts = [optim_info.optim_cls([p], **one.kwargs) for p in (z, r)]
            for _ in range(3):
                z.grad = torch.randn_like(z)
                r.grad = torch.view_as_real(z.grad).clone()
                for opt in opts:
                    opt.step(loss=2.0)
            close(torch.view_as_real(z.detach()), r.detach(), 1e-11)

    @every_info
    def test_parameters_of_several_dtypes_train_together(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
        for one in optim_info.optim_inputs_func(device=device):
            params = [nn.Parameter(torch.full((4, 3), 1.5, dtype=dtype, device=device)) for dtype in dtypes]
            opt = optim_info.optim_cls(params, **one.kwargs)
            measured = []
            for _ in range(8):
                opt.zero_grad()
                loss = sum(p.double().square().mean() for p in params)
                loss.backward()
                opt.step(loss=loss)
                measured.append(loss.item())
            assert [p.dtype for p in params] == dtypes
            assert all(p.isfinite().all() for p in params)
            assert measured[-1] > measured[0] if opt.defaults["maximize"] else measured[-1] < measured[0], one.desc

    @onlyCPU
    @every_info
    def test_fused_goes_as_eager(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        """Of LODO the kernels alone: its networks are graphs of torch.compile, which cost seconds each."""
        for one in optim_info.optim_inputs_func(device=device)[:4]:
            kwargs = {**one.kwargs, "depth": 0} if optim_info.optim_cls is fallline.LODO else one.kwargs
            runs = []
            for fused in (False, True):
                problem = Problem(device, torch.float64)
                problem.train(optim_info.optim_cls(problem.params(), **kwargs, fused=fused), 4)
                runs.append(problem.values())
            close(*runs, 1e-10)

    # -- gradients --------------------------------------------------------------------------------------------

    @every_info
    def test_nothing_happens_without_gradients(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for _, problem, opt in made(optim_info, device, dtype, fused=True):
            if not opt.defaults["fused"]:
                problem.train(opt, 2)
                opt.zero_grad()
            before = everything(opt)
            opt.step()
            assert_bits(before, everything(opt))

    @every_info
    def test_gradients_of_zero_move_nothing_at_rest(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        """Before the first step, without weight decay; afterwards momentum may go on.

        Not of ArTuRO, whose quadratic model has a curvature about 0 from the start.
        """
        for _, problem, opt in made(optim_info, device, dtype):
            if not opt.defaults["weight_decay"] and optim_info.optim_cls is not fallline.ArTuRO:
                before = problem.values()
                for p in problem.params():
                    p.grad = torch.zeros_like(p)
                opt.step(loss=1.0)
                assert_bits(before, problem.values())

    @every_info
    def test_gradients_are_neither_written_nor_resurrected(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for _, problem, opt in made(optim_info, device, dtype):
            loss = problem.closure(opt)()
            grads = [p.grad for p in problem.params()]
            kept = [g.clone() for g in grads]
            opt.step(loss=loss)
            assert all(p.grad is g for p, g in zip(problem.params(), grads, strict=True))
            assert_bits(kept, [g.clone() for g in grads])
            opt.zero_grad()
            opt.load_state_dict(opt.state_dict())
            opt.step()
            pickle.loads(pickle.dumps(opt))
            assert all(p.grad is None for p in problem.params())
            for value in (t for state in opt.state.values() for t in state.values()):
                assert not value.requires_grad
                assert value.grad is None

    # -- state dicts ------------------------------------------------------------------------------------------

    @every_info
    def test_a_loaded_optimizer_goes_on_alike_and_loading_writes_nothing(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for load in (copy.deepcopy, reloaded):
            for one, problem, opt in made(optim_info, device, dtype):
                problem.train(opt, 3)
                other = copy.deepcopy(problem)
                again = optim_info.optim_cls(other.params(), **one.kwargs)
                state_dict = load(opt.state_dict())
                kept = copy.deepcopy(state_dict)
                again.load_state_dict(state_dict)
                assert_bits(everything(opt), everything(again))
                problem.train(opt, 3)
                other.train(again, 3)
                assert_bits(kept, state_dict)
                assert_bits(everything(opt), everything(again))

    @every_info
    def test_an_older_checkpoint_that_lacks_settings_is_loaded(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        """What a group lacks stays as the constructor made it: settings, and also shared scalars."""
        for _, problem, opt in made(optim_info, device, dtype):
            problem.train(opt, 2)
            whole = opt.state_dict()
            for key in whole["param_groups"][0].keys() - {"params"}:
                older = copy.deepcopy(whole)
                for group in older["param_groups"]:
                    del group[key]
                kept = opt.param_groups[0][key]
                opt.load_state_dict(older)
                assert opt.param_groups[0][key] == kept
            problem.train(opt, 1)
            bare = {"state": {}, "param_groups": [{"params": group["params"]} for group in whole["param_groups"]]}
            opt.load_state_dict(bare)
            problem.train(opt, 1)
            assert all(p.isfinite().all() for p in problem.params())

    @every_info
    def test_checkpoints_with_and_without_names_load_into_each_other(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        plain, named = Problem(device, dtype), Problem(device, dtype)
        opt = optim_info.optim_cls(plain.params())
        with_names = optim_info.optim_cls([("weight", named.weight), ("bias", named.bias)])
        plain.train(opt, 2)
        named.train(with_names, 2)
        with_names.load_state_dict(reloaded(opt.state_dict()))
        assert with_names.param_groups[0]["param_names"] == ["weight", "bias"]
        opt.load_state_dict(reloaded(with_names.state_dict()))
        plain.train(opt, 2)
        named.train(with_names, 2)
        assert_bits(plain.values(), named.values())

    @every_info
    def test_hooks_of_state_dicts_see_and_change_them(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        problem = Problem(device, dtype)
        opt = optim_info.optim_cls(problem.params(), lr=0.5)
        seen: list[str] = []

        def set_lr(value: float, name: str) -> Callable[..., dict[str, Any]]:
            def hook(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
                seen.append(name)
                state_dict = copy.copy(state_dict)
                state_dict["param_groups"] = [{**group, "lr": value} for group in state_dict["param_groups"]]
                return state_dict

            return hook

        opt.register_state_dict_pre_hook(lambda _: seen.append("saving"))
        opt.register_state_dict_post_hook(set_lr(0.25, "saved"))
        saved = opt.state_dict()
        assert seen == ["saving", "saved"]
        assert saved["param_groups"][0]["lr"] == 0.25
        seen.clear()
        other = optim_info.optim_cls(Problem(device, dtype).params())
        other.register_load_state_dict_pre_hook(set_lr(0.2, "second"))
        other.register_load_state_dict_pre_hook(set_lr(0.1, "first"), prepend=True)
        other.register_load_state_dict_post_hook(lambda opt: seen.append(f"loaded {opt.param_groups[0]['lr']}"))
        other.load_state_dict(saved)
        assert seen == ["first", "second", "loaded 0.2"]

    @every_info
    def test_hooks_of_steps_are_called_in_order(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        problem = Problem(device, dtype)
        opt = optim_info.optim_cls(problem.params())
        seen: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("global before")),
            register_optimizer_step_post_hook(lambda *_: seen.append("global after")),
            opt.register_step_pre_hook(lambda *_: seen.append("before")),
            opt.register_step_post_hook(lambda *_: seen.append("after")),
        ]
        problem.train(opt, 2)
        for handle in handles:
            handle.remove()
        problem.train(opt, 1)
        assert seen == ["global before", "before", "after", "global after"] * 2

    @every_info
    def test_a_hook_may_change_the_arguments_of_a_step(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        one, two = Problem(device, dtype), Problem(device, dtype)
        opt, opt2 = optim_info.optim_cls(one.params()), optim_info.optim_cls(two.params())
        opt.register_step_pre_hook(lambda opt, args, kwargs: (args, {**kwargs, "loss": 2 * kwargs["loss"]}))
        for problem, o, factor in ((one, opt, 1), (two, opt2, 2)):
            loss = problem.closure(o)()
            o.step(loss=factor * loss)
        assert_bits(one.values(), two.values())

    # -- copies -----------------------------------------------------------------------------------------------

    @every_info
    def test_copies_have_all_public_attributes_and_go_on_alike(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        def public(opt: Any) -> set[str]:
            return {name for name in vars(opt) if not name.startswith("_")}

        for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
            for _, problem, opt in made(optim_info, device, dtype):
                problem.train(opt, 2)
                problem2, opt2 = copied((problem, opt))
                assert public(opt) == public(opt2)
                assert opt.defaults.keys() <= opt2.defaults.keys()  # torch adds `differentiable`
                problem.train(opt, 2)
                problem2.train(opt2, 2)
                assert_bits(everything(opt), everything(opt2))

    @every_info
    def test_a_state_set_by_hand_makes_a_working_optimizer(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        """``__setstate__`` of what ``__getstate__`` gave, as unpickling does it."""
        for _, problem, opt in made(optim_info, device, dtype):
            problem.train(opt, 2)
            again = optim_info.optim_cls.__new__(optim_info.optim_cls)
            again.__setstate__(opt.__getstate__())
            problem.train(again, 2)
            assert again.param_groups[0]["skipped"].item() == 0
            repr(again)

    @every_info
    def test_state_is_allocated_with_the_parameters(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        """So that a loader of checkpoints finds it; VanillaKOALA has none but shared scalars."""
        for _, problem, opt in made(optim_info, device, dtype):
            before = {p: set(state) for p, state in opt.state.items()}
            problem.train(opt, 1)
            assert before == {p: set(state) for p, state in opt.state.items()}
            assert bool(opt.state_dict()["state"] and any(opt.state.values())) == (
                optim_info.optim_cls is not fallline.VanillaKOALA
            )

    # -- CUDA -------------------------------------------------------------------------------------------------

    @onlyCUDA
    @every_info
    def test_a_checkpoint_of_the_cpu_goes_on_there(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for one, problem, opt in made(optim_info, "cpu", torch.float64):
            problem.train(opt, 3)
            other = Problem(device, torch.float64)
            with torch.no_grad():
                for p, q in zip(other.params(), problem.params(), strict=True):
                    p.copy_(q)
            again = optim_info.optim_cls(other.params(), **one.kwargs)
            again.load_state_dict(opt.state_dict())
            values = [*again.state.values(), {"skipped": again.skipped}]
            assert all(t.device.type == "cuda" for state in values for t in state.values())
            problem.train(opt, 3)
            other.train(again, 3)
            close(problem.values(), [p.cpu() for p in other.values()], 1e-8)

    @onlyCUDA
    @every_info
    def test_parameters_on_two_devices_are_refused(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        params = [nn.Parameter(torch.ones(2, device=where)) for where in ("cpu", device)]
        opt = optim_info.optim_cls(params)
        for p in params:
            p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="needs all parameters on one device"):
            opt.step(loss=1.0)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, of the devices that it looks for
    instantiate_device_type_tests(TestOptimizerInfos, globals())
