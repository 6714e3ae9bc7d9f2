"""The paper's linear layer: its schedule, and SGD against a plain loop."""

import pytest
import torch
from clusters import clusters
from torch.nn.functional import cross_entropy

from genray.probes.sgd import LinearSGD, top1, train


def test_the_rate_falls_after_epochs_30_40_and_50_of_60():
    rates = [LinearSGD().rate(epoch / 60) for epoch in range(60)]
    assert rates == pytest.approx([0.1] * 30 + [0.02] * 10 + [0.004] * 10 + [0.0008] * 10)
    cosine = LinearSGD(schedule="cosine")
    assert [cosine.rate(share) for share in (0, 0.5, 1)] == pytest.approx([0.1, 0.05, 0])


@pytest.mark.parametrize("portions", [[64] * 10, [200, 1, 300, 139]], ids=["batches", "other portions"])
def test_it_is_plain_momentum_sgd_on_batches_of_its_own_size(portions):
    x, labels = clusters(640)
    settings = LinearSGD(epochs=2, batch_size=64)
    fed = zip(x.split(portions), labels.split(portions), strict=True)
    layer = train(settings, fed, images=640, classes=10)
    weight, bias = torch.zeros(10, 16, requires_grad=True), torch.zeros(10, requires_grad=True)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(10):
        rows = slice(64 * step, 64 * (step + 1))
        loss = cross_entropy(x[rows] @ weight.T + bias, labels[rows])
        gradients = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            for parameter, gradient, moved in zip([weight, bias], gradients, velocity, strict=True):
                moved.mul_(0.9).add_(gradient)
                parameter.sub_(settings.rate(step / 10) * moved)
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer.bias, bias)


def test_the_last_rows_are_a_smaller_batch():
    x, labels = clusters(100)
    whole = train(LinearSGD(batch_size=64), [(x, labels)], 100, 10)
    short = train(LinearSGD(batch_size=64), [(x[:64], labels[:64])], 100, 10)
    assert not torch.equal(whole.weight, short.weight)


def test_it_learns_what_is_linearly_separable():
    x, labels = clusters(4000)
    judged, expected = clusters(300, seed=1)
    layer = train(LinearSGD(), [(x, labels)], 4000, 10)
    assert top1(layer, judged, expected) > 0.98
