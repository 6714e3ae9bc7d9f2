"""The networks of the objectives and their losses, against references that are written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from encoders import KINDS, MODEL, columns_of, config_of, encoder_of, images_of
from fakes import small
from torch import Tensor, nn

from genray.config.errors import ConfigError
from genray.config.run import Config
from genray.learner import losses, objectives, optim
from genray.learner.encoder import Encoder
from genray.learner.learner import Learner
from genray.learner.objectives.noncontrastive import BYOLEncoder, agreement, spread
from genray.learner.objectives.regression import cross_entropy
from genray.probes import measures
from genray.stream.checks import check_objective
from genray.stream.plan import Plan
from genray.stream.run import Run
from genray.views.random import words
from genray.views.types import GeneratorSpec


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(encoder: Encoder, anchors: int = 5) -> Tensor:
    return encoder.loss(encoder(images_of(encoder, anchors)), columns_of(encoder, anchors))


@pytest.mark.parametrize("kind", ["simclr", "supcon"])
def test_the_contrastive_network_is_drawn_as_it_always_was(kind: str) -> None:
    """Backbone, then the two layers of the head, from one seeded generator."""
    torch.manual_seed(int(words(7, "model", np.zeros(1, dtype=np.int64), 1)[0, 0]))
    backbone = timm.create_model(MODEL["backbone"], num_classes=0, **MODEL["model_args"])
    first, second = nn.Linear(12, 16), nn.Linear(16, 8)
    expected = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    for number, layer in ((0, first), (2, second)):
        expected |= {f"head.{number}.{name}": value for name, value in layer.state_dict().items()}
    found = encoder_of(kind, seed=7).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_network_and_the_objective_not_the_backbone(kind: str) -> None:
    torch.manual_seed(1)
    found, again, other = (encoder_of(kind, seed=seed).state_dict() for seed in (3, 3, 4))
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not all(torch.equal(found[name], other[name]) for name in found if not name.startswith("backbone."))
    simclr = encoder_of("simclr", seed=3).state_dict()
    assert all(torch.equal(found[name], simclr[name]) for name in found if name.startswith("backbone."))


HEADS = {
    "simclr": {"head"},
    "supcon": {"head"},
    "inverter": {"heads"},
    "classifier": {"heads"},
    "simsiam": {"projector", "predictor"},
    "byol": {"projector", "predictor", "target"},
}
OUTPUTS = {
    "simclr": {"embeddings": 8},
    "supcon": {"embeddings": 8},
    "inverter": {"embeddings": 12, "latent": 4, "label": 3},
    "classifier": {"embeddings": 12, "label": 3},
    "simsiam": {"embeddings": 8, "predictions": 8},
    "byol": {"embeddings": 8, "predictions": 8, "targets": 8},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("views", [2, 3])
def test_shapes_and_gradients(kind: str, views: int) -> None:
    encoder = encoder_of(kind, stream={"num_views": views})
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone", *HEADS[kind]}
    found = encoder(images_of(encoder))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (views * 5, width) for name, width in OUTPUTS[kind].items()
    }
    columns = columns_of(encoder)
    loss = encoder.loss(found, columns)
    assert loss.shape == ()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("target.")), name  # as DDP needs it
    metrics = encoder.metrics({name: value.detach() for name, value in found.items()}, columns)
    by_view = found["embeddings"].detach().view(views, 5, -1)
    assert torch.equal(metrics.pop("alignment"), measures.alignment(by_view))
    assert torch.equal(metrics.pop("uniformity"), measures.uniformity(by_view))
    expected = {"inverter": {"latent_error", "class_accuracy"}, "classifier": {"class_accuracy"}}
    assert set(metrics) == expected.get(kind, {"spread"} if kind in ("simsiam", "byol") else set())
    assert all(math.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_one_graph(kind: str) -> None:
    plain, compiled = encoder_of(kind), encoder_of(kind)
    compiled.compile(backend="eager", fullgraph=True)
    for encoder in (plain, compiled):
        loss_of(encoder).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name).grad, parameter.grad)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_rounded_outputs_is_not_rounded_itself(kind: str) -> None:
    encoder = encoder_of(kind)
    rounded = {name: value.detach().bfloat16() for name, value in encoder(images_of(encoder)).items()}
    columns = columns_of(encoder)
    loss = encoder.loss(rounded, columns)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, encoder.loss({name: value.float() for name, value in rounded.items()}, columns))


@pytest.mark.parametrize("kind", KINDS)
def test_all_norms_are_shared_between_learners_where_that_is_asked_for(kind: str) -> None:
    sections: dict[str, Any] = {"model": {"sync_batch_norm": True}, "learners": {"num_workers": 2, "num_gpus": 1}}
    encoder = Learner(Run.of(config_of(kind, **sections)), 0, torch.device("cpu")).encoder
    plain = encoder_of(kind)
    norms = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in plain.modules())
    assert all(isinstance(part, nn.SyncBatchNorm) for part in norms)
    assert [name for name, value in encoder.named_parameters() if value.requires_grad] == [
        name for name, value in plain.named_parameters() if value.requires_grad
    ]


def test_anchors_without_a_class_attract_their_own_views_in_supcon() -> None:
    encoder = encoder_of("supcon", stream={"num_views": 3})
    columns = {"anchor": torch.tensor([4, 5, 6, 7]), "label": torch.tensor([1, -1, 1, -1])}
    embeddings = rows(12, 8)
    same = torch.tensor([0, 1, 0, 2]).repeat(3)
    assert torch.equal(
        encoder.loss({"embeddings": embeddings}, columns), losses.contrastive_loss(embeddings, same, 0.1, 0.07)
    )
    given = {**columns, "label": torch.tensor([1, 2, 1, 0])}
    assert torch.equal(
        encoder.loss({"embeddings": embeddings}, given),
        losses.contrastive_loss(embeddings, given["label"].repeat(3), 0.1, 0.07),
    )


@pytest.mark.parametrize("rendered", [3, 1], ids=["a latent of each view", "one image"])
def test_the_inverter_predicts_each_view_s_own_latent(rendered: int) -> None:
    encoder = encoder_of("inverter", stream={"num_views": 3})
    latent, label = rows(5, rendered, 4, seed=1), torch.tensor([0, 2, 1, 1, 0])
    outputs = {"embeddings": rows(15, 12), "latent": rows(15, 4, seed=2), "label": rows(15, 3, seed=3)}
    squared, nats, right = [], [], 0
    for view in range(3):
        for anchor in range(5):
            row = 5 * view + anchor  # view-major
            own = latent[anchor, view if rendered == 3 else 0]
            squared += [(float(a) - float(b)) ** 2 for a, b in zip(outputs["latent"][row], own, strict=True)]
            logits = outputs["label"][row].double()
            nats.append(math.log(sum(math.exp(float(logit)) for logit in logits)) - float(logits[label[anchor]]))
            right += int(logits.argmax() == label[anchor])
    columns = {"latent": latent, "label": label}
    expected = np.mean(squared) + np.mean(nats)
    assert float(encoder.loss(outputs, columns)) == pytest.approx(expected, rel=1e-5)
    found = encoder.metrics(outputs, columns)
    assert float(found["class_accuracy"]) == pytest.approx(right / 15)
    variance = latent.expand(-1, 3, -1).reshape(15, 4).var(0, correction=0).mean()
    assert float(found["latent_error"]) == pytest.approx(np.mean(squared) / float(variance), rel=1e-5)


def test_the_mean_latent_has_an_error_of_one() -> None:
    encoder = encoder_of("inverter")
    columns = columns_of(encoder)
    mean = columns["latent"].mean((0, 1)).expand(10, 4)
    outputs = {"embeddings": rows(10, 12), "latent": mean, "label": rows(10, 3)}
    assert float(encoder.metrics(outputs, columns)["latent_error"]) == pytest.approx(1)


def test_without_classes_the_inverter_predicts_the_latent_alone() -> None:
    encoder = encoder_of("inverter", options={"num_classes": 0})
    assert encoder.columns == ("latent",)
    outputs, columns = encoder(images_of(encoder)), columns_of(encoder)
    expected = F.mse_loss(outputs["latent"], columns["latent"].transpose(0, 1).flatten(0, 1))
    torch.testing.assert_close(encoder.loss(outputs, columns), expected)


def test_rows_without_a_class_do_not_count() -> None:
    logits, label = rows(6, 3), torch.tensor([2, -1, 0, -1, -1, 1])
    torch.testing.assert_close(cross_entropy(logits, label), F.cross_entropy(logits[label >= 0], label[label >= 0]))
    nobody = logits.clone().requires_grad_()
    loss = cross_entropy(nobody, torch.full((6,), -1))
    loss.backward()
    assert loss == 0
    assert torch.equal(nobody.grad, torch.zeros(6, 3))
    encoder = encoder_of("classifier")
    outputs = {"embeddings": rows(10, 12), "label": F.one_hot(torch.tensor([1, 2, 0, 0, 0] * 2), 3).float()}
    found = encoder.metrics(outputs, {"label": torch.tensor([1, 1, -1, -1, 0])})
    assert float(found["class_accuracy"]) == pytest.approx(2 / 3)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


@pytest.mark.parametrize("views", [2, 3, 4])
def test_agreement_is_the_mean_over_ordered_pairs_of_views(views: int) -> None:
    predictions, targets = rows(views, 5, 7), 3 * rows(views, 5, 7, seed=1)
    pairs = [
        cosine(predictions[v, anchor], targets[w, anchor])
        for anchor in range(5)
        for v in range(views)
        for w in range(views)
        if v != w
    ]
    assert float(agreement(predictions, targets)) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_simsiam_of_two_views_is_the_paper_s() -> None:
    """D(p1, stopgrad(z2)) / 2 + D(p2, stopgrad(z1)) / 2, and no gradient reaches a projection."""
    encoder = encoder_of("simsiam")
    z, p = rows(10, 8).requires_grad_(), rows(10, 8, seed=1).requires_grad_()
    loss = encoder.loss({"embeddings": z, "predictions": p}, {})
    loss.backward()
    (z1, z2), (p1, p2) = z.detach().split(5), p.split(5)
    expected = -F.cosine_similarity(p1, z2).mean() / 2 - F.cosine_similarity(p2, z1).mean() / 2
    torch.testing.assert_close(loss, expected)
    assert z.grad is None
    (gradient,) = torch.autograd.grad(expected, p)
    torch.testing.assert_close(p.grad, gradient)


def test_simsiam_learns_through_its_predictions_alone() -> None:
    """As if the projections that are compared were data."""
    encoder, reference = encoder_of("simsiam"), encoder_of("simsiam")
    loss_of(encoder).backward()
    outputs = reference(images_of(reference))
    constant = torch.from_numpy(outputs["embeddings"].detach().numpy().copy())
    p, z = outputs["predictions"].view(2, 5, 8), constant.view(2, 5, 8)
    loss = -(F.cosine_similarity(p[0], z[1], dim=1) + F.cosine_similarity(p[1], z[0], dim=1)).mean() / 2
    loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_heads_of_simsiam_are_the_paper_s() -> None:
    config = small(model=MODEL, objective={"kind": "simsiam"})
    encoder = objectives.build(config, Plan.of(config))
    linear, norm, relu = nn.Linear, nn.BatchNorm1d, nn.ReLU
    assert [type(part) for part in encoder.projector] == [linear, norm, relu, linear, norm, relu, linear, norm]
    assert [type(part) for part in encoder.predictor] == [linear, norm, relu, linear]
    assert [part.out_features for part in encoder.projector if isinstance(part, linear)] == [2048] * 3
    assert [part.out_features for part in encoder.predictor if isinstance(part, linear)] == [512, 2048]
    projected = encoder(images_of(encoder, 16))["embeddings"]
    torch.testing.assert_close(projected.mean(0), torch.zeros(2048), atol=1e-4, rtol=0)
    assert not encoder.projector[-1].affine


def byol(**sections: Any) -> BYOLEncoder:
    encoder = encoder_of("byol", **sections)
    assert isinstance(encoder, BYOLEncoder)
    return encoder


def test_the_heads_of_byol_are_the_paper_s() -> None:
    config = small(model=MODEL, objective={"kind": "byol"})
    encoder = objectives.build(config, Plan.of(config))
    for head in (encoder.projector, encoder.predictor, encoder.target.projector):
        assert [type(part) for part in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [part.out_features for part in head if isinstance(part, nn.Linear)] == [4096, 256]


def test_byol_of_two_views_is_half_the_paper_s_sum() -> None:
    encoder = byol()
    p, t = rows(10, 8).requires_grad_(), rows(10, 8, seed=1).requires_grad_()
    (p1, p2), (t1, t2) = F.normalize(p).split(5), F.normalize(t).split(5)
    one, other = (p1 - t2).square().sum(1).mean(), (p2 - t1).square().sum(1).mean()
    loss = encoder.loss({"embeddings": p, "predictions": p, "targets": t}, {})
    torch.testing.assert_close(loss, (one + other) / 2)


def test_the_target_begins_as_the_online_network_and_gets_no_gradient() -> None:
    encoder = byol()
    outputs = encoder(images_of(encoder))
    torch.testing.assert_close(outputs["targets"], outputs["embeddings"])
    assert not outputs["targets"].requires_grad
    encoder.loss(outputs, {}).backward()
    slow = {id(parameter) for parameter in encoder.target.parameters()}
    assert len(slow) == len([*encoder.backbone.parameters(), *encoder.projector.parameters()])
    optimizer = optim.build(config_of("byol").optimizer, encoder)
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not slow & updated
    assert updated == {id(parameter) for parameter in encoder.parameters()} - slow


def test_the_slow_copy_makes_the_targets() -> None:
    encoder = byol().eval()
    with torch.no_grad():
        for slow in encoder.target.parameters():
            slow.mul_(1.5)
    images = images_of(encoder)
    outputs = encoder(images)
    online = encoder.projector(encoder.backbone(images))
    torch.testing.assert_close(outputs["embeddings"], online)
    torch.testing.assert_close(outputs["predictions"], encoder.predictor(online))
    torch.testing.assert_close(outputs["targets"], encoder.target.projector(encoder.target.backbone(images)))
    assert (outputs["targets"] - online).abs().mean() > 0.1 * online.abs().mean()


def test_the_target_follows_by_its_momentum() -> None:
    """target := tau target + (1 - tau) online after each step, tau from the base towards 1."""
    encoder = byol()
    names = [name for name, _ in encoder.target.named_parameters()]
    expected = {name: encoder.get_parameter(name).detach().double() for name in names}
    rng = torch.Generator().manual_seed(0)
    for step in range(4):
        with torch.no_grad():
            for name in names:
                fast = encoder.get_parameter(name)
                fast.add_(torch.randn(fast.shape, generator=rng))
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / 4) + 1) / 2
        encoder.after_step(step / 4)
        for name in names:
            online = encoder.get_parameter(name).detach().double()
            expected[name] = tau * expected[name] + (1 - tau) * online
    for name in names:
        torch.testing.assert_close(encoder.target.get_parameter(name).double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(encoder.target.get_parameter(name), encoder.get_parameter(name))


def test_the_momentum_rises_from_its_base_to_one() -> None:
    encoder = byol()
    assert encoder.momentum(0) == pytest.approx(0.9, abs=1e-15)
    assert encoder.momentum(0.5) == pytest.approx(0.95)
    assert encoder.momentum(1) == 1
    found = [encoder.momentum(k / 10) for k in range(11)]
    assert found == sorted(found)
    before = {name: value.clone() for name, value in encoder.target.state_dict().items()}
    with torch.no_grad():
        encoder.projector[0].weight.add_(1)
    encoder.after_step(1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.target.state_dict().items())
    encoder.after_step(0)
    assert not torch.equal(encoder.target.projector[0].weight, before["projector.0.weight"])


def test_spread_tells_a_collapse() -> None:
    assert float(spread(torch.ones(20, 16))) == pytest.approx(0, abs=1e-6)
    assert float(spread(rows(4000, 16))) == pytest.approx(1, abs=0.02)
    assert 0.05 < float(spread(torch.ones(100, 16) + 0.3 * rows(100, 16))) < 0.5


REFUSED = [
    ("supcon", "gaussian", 0, 4, "objective.kind must be one that needs no classes (simclr, simsiam, byol, inverter) "),
    ("classifier", "none", 1, 4, "for a source with fewer than two, got 'classifier' with theirs"),
    ("inverter", "none", 3, 0, "one that needs no latents (simclr, simsiam, byol, supcon, classifier) for a source"),
    ("simclr", "independent", 0, 4, "view.kind must not be 'independent' with fewer than two classes"),
    ("simsiam", "independent", 0, 4, "common than any two images), got 'independent' with theirs"),
    ("byol", "independent", 1, 4, "common than any two images), got 'independent' with theirs"),
]
ALLOWED = [
    ("classifier", "none", 2, 0),
    ("inverter", "none", 3, 4),
    ("inverter", "independent", 0, 4),
    ("supcon", "independent", 3, 0),
    ("simclr", "independent", 2, 4),
    ("byol", "gaussian", 0, 4),
]


def generator(num_classes: int, latent_dim: int) -> GeneratorSpec:
    return GeneratorSpec("theirs", 8, latent_dim, num_classes)


@pytest.mark.parametrize(("kind", "view", "num_classes", "latent_dim", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(kind: str, view: str, num_classes: int, latent_dim: int, message: str) -> None:
    config = small(objective={"kind": kind}, view={"kind": view})
    with pytest.raises(ConfigError) as error:
        check_objective(config, *2 * (generator(num_classes, latent_dim),))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "view", "num_classes", "latent_dim"), ALLOWED)
def test_what_makes_sense_is_not(kind: str, view: str, num_classes: int, latent_dim: int) -> None:
    spec = generator(num_classes, latent_dim)
    check_objective(small(objective={"kind": kind}, view={"kind": view}), spec, spec)


@pytest.mark.parametrize("stream", [{"classes": [3]}, {"class_weights": [0, 2, 0, 0]}])
def test_views_of_the_only_class_that_is_shown_share_nothing(stream: dict[str, Any]) -> None:
    spec = generator(4, 4)
    with pytest.raises(ConfigError, match="fewer than two classes"):
        check_objective(small(stream=stream, view={"kind": "independent"}), spec, spec)


def test_independent_slices_of_the_whole_latent_are_independent_views() -> None:
    def chunked(*slices: tuple[int, int]) -> Config:
        return small(view={"kind": "chunked", "slices": slices, "noise": {"kind": "independent"}})

    spec = generator(0, 4)
    check_objective(chunked((0, 3)), spec, spec)
    with pytest.raises(ConfigError, match=r"must not be 'independent'.*got 'chunked'"):
        check_objective(chunked((0, 1), (1, 4)), spec, spec)


def test_of_a_mix_the_generator_decides_what_its_views_share() -> None:
    config, without = small(objective={"kind": "simclr"}, view={"kind": "independent"}), generator(0, 0)
    check_objective(config, without, generator(3, 4))
    with pytest.raises(ConfigError, match="fewer than two classes"):
        check_objective(config, without, generator(0, 4))
