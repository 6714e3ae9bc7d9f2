"""A navigator: it makes its critic's task harder, goes no further than it may, and is what the file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import blob

from genray.commands.lessons.differentiable import DifferentiableGenerator
from genray.commands.lessons.navigate import SAMPLE_ANCHORS, NavigateOptions, Navigation, augmented, navigate
from genray.config.errors import UserError
from genray.config.sections import Augment
from genray.config.view import Navigator
from genray.learner.losses import contrastive_loss
from genray.views import augment, walk_files
from genray.views.anchors import Anchors
from genray.views.latent_views import neighbour_latents

FAST = NavigateOptions(steps=200, batch=16, hidden=16, lr=3e-3, distance=0.3)
PLAIN = augment.policy(Augment(policy="none"), 16)


def student(options: NavigateOptions = FAST, micro_batch: int = 16, policy: augment.Policy = PLAIN) -> Navigation:
    return Navigation(DifferentiableGenerator(blob(generator={"micro_batch": micro_batch})), options, policy)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("navigator") / "navigator.safetensors"
    navigate(blob(augment={"policy": "none"}), path, FAST, say=lambda line: None)
    return path


def test_it_stops_where_latents_have_travelled_far_enough(out: Path) -> None:
    about = walk_files.NAVIGATOR.read("view.file", str(out)).about
    assert about["curve_ends"]["step"] < FAST.steps
    assert about["distance"] == pytest.approx(FAST.distance, abs=0.02)
    assert about["settings"]["navigate"]["hidden"] == 16
    assert about["settings"]["augment"]["policy"] == "none"
    assert out.with_suffix(".png").exists()


def test_the_view_is_what_was_learned(out: Path) -> None:
    anchors = Anchors(seed=9, latent_dim=8, num_classes=0)
    z = anchors.latents(np.arange(3000))
    way = neighbour_latents(Navigator(file=str(out)), z, z, 1.0) - z
    assert np.sqrt((way**2).mean()) == pytest.approx(FAST.distance, abs=0.02)
    assert np.abs(way.mean(0)).max() < 0.05  # no direction is common to all
    assert way.std(0).max() > 0.2
    layers = walk_files.NAVIGATOR.read("view.file", str(out)).tensors
    assert layers["first.weight"].shape == (16, 8)
    assert layers["second.weight"].shape == (8, 16)


def test_it_goes_where_its_critic_looks(out: Path) -> None:
    """Its critic does worse on its views than on those of networks that take random ways as long."""
    z, draw = Anchors(seed=9, latent_dim=8, num_classes=0).latents(np.arange(3000)), np.random.default_rng(0)
    learned_way = neighbour_latents(Navigator(file=str(out)), z, z, 1.0) - z
    assert learned_way.std(0)[7] < 0.02 < learned_way.std(0)[:7].min()  # the last number shows in no image

    def random() -> Callable[[np.ndarray], np.ndarray]:
        first, second = draw.standard_normal((8, 16)) / 3, draw.standard_normal((16, 8)) / 4
        ways = (z @ first).clip(0) @ second
        scale = np.sqrt((learned_way**2).mean() / ((ways - ways.mean(0)) ** 2).mean())
        return lambda z: z + scale * ((z @ first).clip(0) @ second - ways.mean(0))

    made = student()
    state = torch.load(out.with_suffix(".navigate") / "checkpoint.pt", weights_only=True)["state"]
    made.critic.load_state_dict(state["critic"])

    @torch.no_grad()
    def loss(view: Callable[[np.ndarray], np.ndarray]) -> float:
        found = []
        for number in range(1000, 1020):  # on anchors that it has not seen
            z, labels, seeds = made.source.draw(number, 64)
            there = torch.from_numpy(view(z.numpy().astype(np.float64))).float()
            images = torch.cat([made.source.render(at, labels, seeds) for at in (z, there)])
            found.append(contrastive_loss(made.critic(images), torch.arange(64).repeat(2), 0.1, 0.1).item())
        return float(np.mean(found))

    ours = loss(lambda z: neighbour_latents(Navigator(file=str(out)), z, z, 1.0))
    assert ours > np.mean([loss(random()) for _ in range(4)]) + 0.1


def test_a_step_is_one_of_each_on_the_whole_loss() -> None:
    """Against one backward pass through generator and critic at once."""
    made, plain = student(micro_batch=5), student()
    for network in (made.navigator, plain.navigator):  # somewhere on the way
        torch.nn.init.normal_(network[2].weight, 0, 0.01, generator=torch.Generator().manual_seed(1))
    z, labels, seeds = plain.source.draw(4, 16)
    way = plain.navigator(z)
    there = z + way - way.mean(0)
    images = torch.cat([plain.source.render(z, labels, seeds), plain.source.render(there, labels, seeds)])
    mean, std = (torch.tensor(of)[:, None, None] for of in (augment.MEAN, augment.STD))
    loss = contrastive_loss(plain.critic(((images + 1) / 2 - mean) / std), torch.arange(16).repeat(2), 0.1, 0.1)
    loss.backward()
    far = travelled(made)
    found = made.step(4)
    assert found is not None
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["distance"] == pytest.approx(far, rel=1e-5)
    for ours, theirs in ((made.critic, plain.critic), (made.navigator, plain.navigator)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    before = student()
    torch.nn.init.normal_(before.navigator[2].weight, 0, 0.01, generator=torch.Generator().manual_seed(1))
    for ours, start, sign in ((made.critic, before.critic, -1), (made.navigator, before.navigator, 1)):
        moved = sum(float(((a - b) * a.grad).sum()) for a, b in zip(ours.parameters(), start.parameters(), strict=True))  # type: ignore[operator]
        assert sign * moved > 0  # the critic goes down, the navigator up


def travelled(made: Navigation) -> float:
    """How far the navigator moves many anchors, but for what it moves all alike."""
    way = made.navigator(made.source.draw(0, SAMPLE_ANCHORS)[0]).detach()
    return float((way - way.mean(0)).square().mean().sqrt())


def test_it_begins_as_no_movement() -> None:
    found = student().step(0)
    assert found is not None
    assert found["distance"] == 0


def test_distances_are_in_units_of_the_prior() -> None:
    made = Navigation(DifferentiableGenerator(blob(generator={"truncation": 0.5})), FAST, PLAIN)
    torch.nn.init.normal_(made.navigator[2].weight, 0, 0.01, generator=torch.Generator().manual_seed(1))
    far = travelled(made)
    found = made.step(0)
    assert found is not None
    assert found["distance"] == pytest.approx(2 * far, rel=1e-5)


@pytest.mark.parametrize("name", ["none", "genrep", "simclr", "digits"])
@pytest.mark.parametrize("side", [40, 150])
def test_images_are_augmented_as_they_are_for_learners(name: str, side: int) -> None:
    policy = augment.policy(Augment(policy=name), side)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (12, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    images = torch.nn.functional.interpolate(images, side, mode="bilinear").round()
    happens = augment.view_parameters(policy, 0, np.arange(6), 2)
    expected = augment.augment(images.to(torch.uint8), policy, happens)
    pixels = (images / 127.5 - 1).requires_grad_()
    found = augmented(pixels, policy, happens)
    assert found.shape == expected.shape
    assert (found - expected).abs().quantile(0.99) < 0.01
    found.square().sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.isfinite().all())
    assert bool((pixels.grad.flatten(1).abs().amax(1) > 0).all())


def test_black_and_white_images_have_a_gradient_too() -> None:
    policy = augment.policy(Augment(policy="simclr"), 16)
    pixels = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 16, 16).clone().requires_grad_()
    augmented(pixels, policy, augment.view_parameters(policy, 0, np.arange(3), 1)).sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.isfinite().all())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"distance": 0.0}, "--distance must be more than 0, got 0"),
        ({"critic_lr": -1.0}, "--critic-lr must be more than 0, got -1"),
        ({"batch": 1}, "--batch must be at least 2, so that anchors can be contrasted, got 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        navigate(blob(), tmp_path / "n.safetensors", NavigateOptions(**options))
    assert str(error.value) == told
    assert not list(tmp_path.iterdir())
