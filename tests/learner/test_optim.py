"""Updates, decay groups and the schedule against closed forms."""

import math

import pytest
import torch
from torch import nn

from genray.config import sections
from genray.learner.optim import build, learning_rate, parameter_groups, set_learning_rate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def one_weight(*values: float) -> tuple[nn.Module, nn.Parameter]:
    module = nn.Linear(len(values), 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([values]))
    return module, module.weight


def test_sgd_two_steps_by_hand() -> None:
    module, weight = one_weight(1.0, -2.0)
    optimizer = build(sections.SGD(lr=0.1, momentum=0.9, weight_decay=0.5), module)
    expected, velocity = torch.tensor([1.0, -2.0]).double(), torch.zeros(2).double()
    for gradient in (torch.tensor([0.3, 0.4]).double(), torch.tensor([-1.0, 0.2]).double()):
        weight.grad = gradient[None].clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.5 * expected  # a Nesterov step would look ahead
        expected = expected - 0.1 * velocity
        torch.testing.assert_close(weight.detach()[0], expected)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_lars_equals_its_formula(decay: float) -> None:
    module, weight = one_weight(3.0, 4.0)
    optimizer = build(sections.LARS(lr=2.0, momentum=0.5, weight_decay=decay, trust=0.01), module)
    expected, velocity = torch.tensor([3.0, 4.0]).double(), torch.zeros(2).double()
    for gradient in (torch.tensor([0.6, 0.8]).double(), torch.tensor([-0.3, 0.1]).double()):
        weight.grad = gradient[None].clone()
        optimizer.step()
        trust = 0.01 * expected.norm() / (gradient.norm() + decay * expected.norm())
        velocity = 0.5 * velocity + trust * (gradient + decay * expected)
        expected = expected - 2.0 * velocity
        torch.testing.assert_close(weight.detach()[0], expected)


def test_lars_treats_biases_as_plain_sgd() -> None:
    module = nn.Linear(2, 2)
    before = module.bias.detach().clone()
    optimizer = build(sections.LARS(lr=0.5, momentum=0.0, weight_decay=0.1, trust=1e-3), module)
    module.bias.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(module.bias.detach(), before - 0.5 * module.bias.grad)


def test_adamw_first_step_moves_each_weight_by_the_rate() -> None:
    module, weight = one_weight(1.0, -2.0)
    optimizer = build(sections.AdamW(lr=0.1, betas=(0.9, 0.99), weight_decay=0.5), module)
    weight.grad = torch.tensor([[3.0, -0.01]]).double()
    optimizer.step()
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(weight.detach(), expected.double(), rtol=1e-5, atol=1e-5)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("kind", [sections.LARS(), sections.AdamW()])
def test_biases_and_norms_are_not_decayed(kind: sections.LARS | sections.AdamW) -> None:
    module = network()
    decayed, spared = build(kind, module).param_groups
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[3].weight)}
    assert {id(p) for p in spared["params"]} == {id(p) for p in module.parameters()} - {
        id(p) for p in decayed["params"]
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (kind.weight_decay, 0)


def test_plain_sgd_decays_everything() -> None:
    module = network()
    (group,) = build(sections.SGD(), module).param_groups
    assert (len(group["params"]), group["weight_decay"]) == (len(list(module.parameters())), 1e-4)


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module[0].requires_grad_(False)
    weights, vectors = parameter_groups(module)
    assert (len(weights["params"]), len(vectors["params"])) == (1, 3)
    assert len(build(sections.SGD(), module).param_groups[0]["params"]) == 4


def test_schedule_at_its_corners() -> None:
    def rate(anchors: int) -> float:
        return learning_rate(2.0, anchors, total_anchors=1000, warmup_anchors=200, final=0.1)

    assert rate(0) == 0
    assert rate(50) == pytest.approx(0.5)
    assert rate(200) == pytest.approx(2.0)
    assert rate(600) == pytest.approx((2.0 + 0.2) / 2)
    assert rate(400) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert rate(1000) == rate(5000) == pytest.approx(0.2)


def test_schedule_rises_then_falls() -> None:
    rates = [learning_rate(1.0, anchors, 1000, 100, 1e-3) for anchors in range(0, 1001, 10)]
    assert rates[:11] == sorted(set(rates[:11]))
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)


def test_schedule_without_and_with_nothing_but_warmup() -> None:
    assert learning_rate(1.0, 0, 100, 0, 0.5) == 1.0
    assert learning_rate(1.0, 100, 100, 100, 0.5) == pytest.approx(1.0)  # warm-up has just ended, and so has the run
    assert learning_rate(1.0, 99, 100, 100, 0.5) == pytest.approx(0.99)


def test_set_learning_rate_reaches_all_groups() -> None:
    optimizer = build(sections.AdamW(), network())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
