"""The ratio's scale, read from real optimizers, against the largest step each of them survives on a quadratic."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_probes.callbacks.curvature.stability import known, stability_of
from lightning_probes.functional.curvature.stability_limits import clipping_factor
from lightning_probes.probing.run.bare import BareRun
from lightning_probes.probing.run.optimizers import OptimizerGroup, optimizer_groups
from lightning_probes.probing.run.trainer import TrainerRun

SGD = OptimizerGroup("SGD", {"lr": 0.1, "momentum": 0.0}, {"a": {}, "b": {}})
PARAMS = {"a": torch.zeros(2), "b": torch.zeros(1)}


class Quadratic(nn.Module):
    """loss = ½ Σ h x²: the Hessian is diag(h)."""

    def __init__(self, *curvatures):
        super().__init__()
        self.curvatures = [torch.tensor(h) for h in curvatures]
        self.x = nn.ParameterList([torch.ones_like(h) for h in self.curvatures])

    def forward(self):
        return sum((h * x.square()).sum() / 2 for h, x in zip(self.curvatures, self.x, strict=True))

    def ratio(self, *optimizers):
        params = {name: p.detach() for name, p in self.named_parameters()}
        stability = stability_of(optimizer_groups(optimizers, self), params)
        return float((stability.inverse_threshold * torch.cat(self.curvatures)).max())

    def survives(self, optimizer, steps=400):
        for _ in range(steps):
            optimizer.zero_grad()
            self().backward()
            optimizer.step()
        return float(self().detach()) < 1e3


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3}, {"momentum": 0.8, "nesterov": True}]
)
@pytest.mark.parametrize("margin", [0.95, 1.05])
def test_sgd_diverges_exactly_where_the_ratio_passes_one(options, margin):
    module = Quadratic([3.0, 1.0])
    lr = 0.1 * margin / module.ratio(torch.optim.SGD(module.parameters(), lr=0.1, **options))
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, **options)
    assert module.ratio(optimizer) == pytest.approx(margin)
    assert module.survives(optimizer) == (margin < 1)


def test_each_group_has_its_own_threshold():
    module = Quadratic([3.0], [20.0])
    slow = {"params": [module.x[1]], "lr": 0.001, "momentum": 0.9}
    optimizer = torch.optim.SGD([{"params": [module.x[0]]}, slow], lr=0.1)
    assert module.ratio(optimizer) == pytest.approx(max(3.0 * 0.1 / 2, 20.0 * 0.001 / 3.8))
    both = [torch.optim.SGD([module.x[0]], lr=0.1), torch.optim.SGD([module.x[1]], lr=0.001, momentum=0.9)]
    assert module.ratio(*both) == module.ratio(optimizer)


def test_one_threshold_for_all_is_given_as_a_number():
    assert stability_of([SGD], PARAMS).uniform == pytest.approx(0.05)
    halves = [OptimizerGroup("SGD", SGD.options, {name: {}}) for name in PARAMS]
    assert stability_of(halves, PARAMS).uniform == pytest.approx(0.05)
    other = OptimizerGroup("SGD", {"lr": 0.2, "momentum": 0.0}, {"b": {}})
    assert stability_of([halves[0], other], PARAMS).uniform is None


def test_a_parameter_that_nobody_updates_has_no_share():
    alone = stability_of([OptimizerGroup("SGD", SGD.options, {"a": {}})], PARAMS)
    assert alone.uniform is None
    assert alone.inverse_threshold.tolist() == pytest.approx([0.05, 0.05, 0.0])


def adam(module, kind=torch.optim.Adam, steps=12, lr=0.1, **options):
    optimizer = kind(module.parameters(), lr=lr, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        module().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "betas": (0.5, 0.5)}, {"betas": (0.5, 0.8), "eps": 0.1}])
def test_adams_preconditioner_is_what_its_last_step_divided_by(kind, options):
    module = Quadratic([3.0, 1.0, 0.5])
    optimizer = adam(module, kind, weight_decay=0.0, **options)
    before = module.x[0].detach().double()
    optimizer.zero_grad()
    module().backward()
    optimizer.step()
    found = stability_of(optimizer_groups([optimizer], module), {"x.0": module.x[0].detach()})

    step = before - module.x[0].detach().double()
    inverse = step / (0.1 * optimizer.state[module.x[0]]["exp_avg"].double())
    beta1 = optimizer.param_groups[0]["betas"][0]
    threshold = 0.1 * (1 - beta1) / (2 + 2 * beta1)
    assert torch.allclose(found.inverse_preconditioner.double(), inverse, rtol=1e-4)
    assert found.uniform == pytest.approx(threshold)
    assert torch.allclose(found.inverse_threshold.double(), threshold * inverse, rtol=1e-4)


def test_learning_rate_may_be_a_tensor():
    module = Quadratic([3.0])
    plain, tensor = (torch.optim.SGD(module.parameters(), lr=lr) for lr in (0.25, torch.tensor(0.25)))
    assert module.ratio(plain) == module.ratio(tensor)


def test_adam_in_half_precision_is_read_in_single():
    module = Quadratic([3.0, 1.0]).bfloat16()
    optimizer = adam(module)
    found = stability_of(optimizer_groups([optimizer], module), {n: p.detach() for n, p in module.named_parameters()})
    second = optimizer.state[module.x[0]]["exp_avg_sq"].double()
    divisor = (1 - 0.9**12) * (second.sqrt() / (1 - 0.999**12) ** 0.5 + 1e-8)
    assert found.inverse_preconditioner.dtype == torch.float32
    assert torch.allclose(found.inverse_preconditioner.double(), 1 / divisor, rtol=1e-5)


@pytest.mark.parametrize(("beta1", "first"), [(0.0, 1), (0.5, 2), (0.9, 10), (0.95, 20)])
def test_nothing_is_said_of_adam_until_its_preconditioner_has_as_many_gradients_as_its_momentum(beta1, first):
    module = Quadratic([3.0])
    for steps in (0, first - 1, first):
        groups = optimizer_groups([adam(module, steps=steps, betas=(beta1, 0.999))], module)
        assert known(groups)
        assert (stability_of(groups, {"x.0": torch.zeros(1)}) is None) == (steps < first)


def test_a_parameter_that_adam_has_hardly_seen_has_no_share():
    module = Quadratic([3.0], [2.0])
    optimizer = adam(module)
    optimizer.state[module.x[1]]["step"] -= 5
    found = stability_of(
        optimizer_groups([optimizer], module), {name: p.detach() for name, p in module.named_parameters()}
    )
    assert found.inverse_threshold[0] > 0
    assert found.inverse_threshold[1] == found.inverse_preconditioner[1] == 0


@pytest.mark.parametrize("margin", [0.95, 1.05])
def test_clipped_step_on_a_quadratic_comes_closer_exactly_where_the_ratio_is_below_one(margin):
    module, curvature, limit = Quadratic([3.0]), 3.0, 0.1
    trainer = Trainer(gradient_clip_val=limit, logger=False, enable_checkpointing=False, accelerator="cpu")
    plain = torch.optim.SGD(module.parameters(), lr=1.0)
    lr = margin / (
        module.ratio(plain) * clipping_factor(TrainerRun(trainer, module).gradient_clip, torch.tensor([curvature]))
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    module().backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
    optimizer.step()
    assert (module.x[0].abs().item() < 1) == (margin < 1)


def test_clipping_leaves_all_of_a_shorter_gradient_and_nothing_is_said_of_clipping_by_value():
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    gradient = torch.tensor([3.0, 4.0])

    def factor(gradient, **clipping):
        trainer = Trainer(**clipping, **options)
        return clipping_factor(TrainerRun(trainer, Quadratic()).gradient_clip, gradient)

    assert clipping_factor(BareRun().gradient_clip, gradient) == factor(gradient) == 1
    assert factor(gradient, gradient_clip_val=6) == 1
    assert factor(gradient, gradient_clip_val=1.0, gradient_clip_algorithm="value") == 1
    assert factor(gradient, gradient_clip_val=1) == pytest.approx(0.2)
    assert factor(0 * gradient, gradient_clip_val=1) == 1


def test_a_parameter_without_gradients_does_not_silence_adam():
    module = Quadratic([3.0])
    module.unused = nn.Parameter(torch.zeros(2))
    optimizer = adam(module)
    params = {name: p.detach() for name, p in module.named_parameters()}
    found = stability_of(optimizer_groups([optimizer], module), params)
    assert found.uniform == pytest.approx(0.1 * 0.1 / 3.8)
    by_name = dict(
        zip(params, torch.split(found.inverse_preconditioner, [p.numel() for p in params.values()]), strict=True)
    )
    assert by_name["unused"].tolist() == [0.0, 0.0]
    assert (by_name["x.0"] > 0).all()


def test_sgd_and_adam_side_by_side_have_no_common_preconditioner():
    module = Quadratic([3.0], [2.0])
    adam_ = torch.optim.Adam([module.x[0]], lr=0.1)
    for _ in range(10):
        module().backward()
        adam_.step()
    optimizers = [adam_, torch.optim.SGD([module.x[1]], lr=0.1)]
    params = {name: p.detach() for name, p in module.named_parameters()}
    found = stability_of(optimizer_groups(optimizers, module), params)
    assert found.inverse_preconditioner is None
    assert found.uniform is None
    assert found.inverse_threshold[1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [OptimizerGroup("RMSprop", {"lr": 0.1}, {"a": {}})],
        [SGD, OptimizerGroup("my_package.SGD", {"lr": 0.1}, {"b": {}})],
        [OptimizerGroup("SGD", {**SGD.options, "maximize": True}, {"a": {}})],
    ],
)
def test_no_threshold_without_groups_of_known_optimizers_and_settings(groups):
    assert stability_of(groups, PARAMS) is None


def test_an_unknown_optimizer_of_other_modules_is_no_obstacle():
    groups = [SGD, OptimizerGroup("Lion", {"lr": 0.1}, {})]
    assert known(groups)
    assert stability_of(groups, PARAMS).uniform == pytest.approx(0.05)
    assert not known([OptimizerGroup("Lion", {"lr": 0.1}, {"a": {}})])
