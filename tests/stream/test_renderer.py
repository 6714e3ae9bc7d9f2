"""A ticket's block is a function of the seed and its positions: nothing else may change it, nothing bad may be in."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import small
from torch import Tensor

from genray.config.load import build
from genray.config.run import Config
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.tickets import Course, Ticket
from genray.views.sources.generated import render
from genray.views.types import BadImages, Block

CONTENT = ("views", "label", "latent", "anchor", "epoch")


def at(number: int, anchors: int = 8) -> Ticket:
    """A ticket of `small()`."""
    return Ticket(number, np.arange(number * anchors, (number + 1) * anchors))


def blocks(config: Config, tickets: range) -> Block:
    """The content of several tickets, one after the other."""
    renderer = Renderer(config, "cpu")
    found = [renderer.block(Course(Plan.of(config)).ticket(ticket)) for ticket in tickets]
    return {name: np.concatenate([block[name] for block in found]) for name in CONTENT}


def assert_same(one: Block, other: Block) -> None:
    for name in CONTENT:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_block_holds_what_the_design_says() -> None:
    before = time.time()
    block = Renderer(small(stream={"num_views": 3}, seed=1), "cpu").block(at(2))
    shapes = {name: (column.dtype.str, column.shape) for name, column in block.items() if name != "generator"}
    assert shapes == {
        "views": ("|u1", (8, 3, 3, 8, 8)),
        "label": ("<i8", (8,)),
        "latent": ("<f4", (8, 3, 4)),
        "anchor": ("<i8", (8,)),
        "epoch": ("<i8", (8,)),
        "position": ("<i8", (8,)),
        "ticket": ("<i8", (8,)),
        "created_at": ("<f8", (8,)),
        "render_s": ("<f8", (8,)),
    }
    assert block["anchor"].tolist() == list(range(16, 24))
    assert block["position"].tolist() == list(range(16, 24))
    assert set(block["ticket"].tolist()) == {2}
    assert before <= block["created_at"][0] <= time.time()
    assert 0 < block["render_s"][0] < 60
    assert len(set(block["created_at"].tolist())) == len(set(block["render_s"].tolist())) == 1
    assert str(block["generator"][7]).startswith(f"{socket.gethostname()}:")


def test_tx_only_renders_each_anchor_once() -> None:
    block = Renderer(small(view={"kind": "none"}, stream={"num_views": 5}), "cpu").block(at(0))
    assert block["views"].shape == (8, 1, 3, 8, 8)
    assert block["latent"].shape == (8, 1, 4)
    neighbours = Renderer(small(), "cpu").block(at(0))
    np.testing.assert_array_equal(block["views"][:, 0], neighbours["views"][:, 0])  # view 0 is the anchor itself


@pytest.mark.parametrize("micro_batch", [1, 5, 16, 64])
def test_the_micro_batch_only_cuts(micro_batch: int) -> None:
    assert_same(blocks(small(generator={"micro_batch": micro_batch}), range(2)), blocks(small(), range(2)))


@pytest.mark.parametrize("stream", [{}, {"num_anchors": 11, "num_neighbors": 2, "num_views": 3}])
def test_the_size_of_a_ticket_only_cuts(stream: dict[str, Any]) -> None:
    long = blocks(small(stream={**stream, "ticket_batches": 4}), range(2))
    assert_same(blocks(small(stream={**stream, "ticket_batches": 2}), range(4)), long)
    assert_same(blocks(small(stream={**stream, "ticket_batches": 1}), range(8)), long)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_learners_only_deals_the_anchors_out(workers: int) -> None:
    config = small(learners={"num_workers": [1, 2]}, training={"steps": 8})
    renderer, course = Renderer(config, "cpu"), Course(Plan.of(config, workers))
    found = [renderer.block(course.ticket(index)) for index in range(len(course))]
    order = np.argsort(np.concatenate([block["position"] for block in found]))
    together = {name: np.concatenate([block[name] for block in found])[order] for name in CONTENT}
    assert_same(together, blocks(small(), range(4)))


def test_a_block_is_what_its_positions_show_whatever_its_number() -> None:
    places = np.array([40, 41, 44, 45, 48, 49])
    block = Renderer(small(), "cpu").block(Ticket(9, places))
    assert block["position"].tolist() == block["anchor"].tolist() == places.tolist()
    assert block["ticket"].tolist() == [9] * 6
    whole = blocks(small(), range(7))
    assert_same(block, {name: whole[name][places] for name in CONTENT})


def test_any_ticket_comes_alone_and_again() -> None:
    renderer = Renderer(small(), "cpu")
    first, _, again = renderer.block(at(5)), renderer.block(at(0)), renderer.block(at(5))
    assert_same(first, again)
    assert_same(Renderer(small(), "cpu").block(at(5)), first)


def test_seed_and_positions_decide() -> None:
    one, other = blocks(small(), range(2)), blocks(small(seed=1), range(2))
    assert not (one["views"] == other["views"]).all((1, 2, 3, 4)).any()
    images = one["views"].reshape(-1, 3 * 8 * 8)
    assert len(np.unique(images, axis=0)) == len(images)


def test_a_neighbour_shown_again_is_the_same_image() -> None:
    """Also of a generator that draws noise: its seed belongs to the neighbour, not to the showing."""
    shown = blocks(small(stream={"num_anchors": 8, "num_neighbors": 2}), range(12))
    for anchor in range(8):
        views = shown["views"][shown["anchor"] == anchor]
        assert len(views) == 12
        assert len(np.unique(views[:, 0], axis=0)) == 1
        assert len(np.unique(views[:, 1], axis=0)) == 2


def test_the_embedded_generator_renders_the_same_bytes_however_it_is_cut() -> None:
    def embedded(ticket_batches: int) -> Config:
        stream = {"batch_size": 12, "ticket_batches": ticket_batches}
        return build({"name": "x", "generator": {"micro_batch": 16}, "stream": stream})

    long = blocks(embedded(2), range(1))
    assert_same(blocks(embedded(2), range(1)), long)
    assert_same(blocks(embedded(1), range(2)), long)  # images lie elsewhere in the micro-batches, padding between
    assert long["views"].shape == (24, 2, 3, 32, 32)
    assert long["views"].std() > 20


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("constant", "1 of 16 images are of one constant colour"),
        ("nan", "1 of 16 images have pixels that are not finite, image 15 first"),
        (
            "shape",
            r"images must be uint8, .* of shape \[16, 3, 8, 8\], got torch.uint8 of shape \[16, 3, 4, 8\]",
        ),
        ("dtype", r"images must be uint8, .* got torch.int32 of shape \[16, 3, 8, 8\]"),
    ],
)
def test_bad_images_never_leave(bad: str, message: str) -> None:
    with pytest.raises(BadImages, match=message):
        Renderer(small({"bad": bad}), "cpu").block(at(3))


class Steps:
    """A generator that says what happens and when; `bad` images are not finite."""

    image_size, latent_dim, num_classes = 4, 2, 3

    def __init__(self, bad: tuple[int, ...] = ()):
        self.bad, self.sizes = bad, list[int]()

    def __call__(self, z: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        raise AssertionError("it would wait for its device")

    def unchecked(self, z: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(z))
        images = (z[:, :1] + labels[:, None] + seeds[:, None]).to(torch.uint8)[:, :, None, None].expand(-1, 3, 4, 4)
        return images, torch.tensor([int(seed) not in self.bad for seed in seeds])


def of_steps(generator: Steps, count: int, micro_batch: int) -> np.ndarray:
    rows = np.arange(count)
    latents = np.stack([rows, rows], 1).astype(np.float32)
    return render(generator, latents, rows % 3, 2 * rows, micro_batch, torch.device("cpu"))


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 20])
def test_a_generator_that_need_not_wait_is_looked_at_once(micro_batch: int) -> None:
    generator = Steps()
    images = of_steps(generator, 7, micro_batch)
    assert images.shape == (7, 3, 4, 4)
    assert images[:, 1, 2, 3].tolist() == [i + i % 3 + 2 * i for i in range(7)]
    assert generator.sizes == [micro_batch] * -(-7 // micro_batch)


def test_what_is_not_finite_is_found_at_the_end_but_not_in_the_padding() -> None:
    with pytest.raises(BadImages, match="2 of 7 images have pixels that are not finite, image 4 first"):
        of_steps(Steps(bad=(8, 12)), 7, 3)
    with pytest.raises(BadImages, match="1 of 7 images"):  # the last one, which also fills up
        of_steps(Steps(bad=(12,)), 7, 3)


def test_weights_that_are_not_finite_leave_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(build({"name": "x", "generator": {"micro_batch": 8}, "stream": {"batch_size": 4}}), "cpu")
    renderer.source.generator.network.to_rgb.bias.data.fill_(torch.nan)  # type: ignore[attr-defined]
    with pytest.raises(BadImages, match="16 of 16 images have pixels that are not finite, image 0 first"):
        renderer.block(at(0))


def test_a_micro_batch_that_nobody_has_settled_is_the_default() -> None:
    auto, default = (Renderer(build({"name": "x", "generator": how}), "cpu") for how in ({"micro_batch": "auto"}, {}))
    assert auto.source.micro_batch == default.source.micro_batch == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
def test_two_processes_and_two_groupings_give_the_same_bytes(options: dict[str, Any]) -> None:
    code = (
        "import hashlib, numpy as np; from genray.config.load import build; from genray.stream.tickets import Ticket;"
        "from genray.stream.renderer import Renderer;"
        f"r = Renderer(build({{'name': 'x', 'generator': {{'micro_batch': 16, **{options!r}}}}}), 'cpu');"
        "groups = [np.arange(20)] if {whole} else [np.arange(7), np.arange(7, 20)];"
        "views = np.concatenate([r.block(Ticket(0, g))['views'] for g in groups]);"
        "print(views.shape, hashlib.sha256(views.tobytes()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code.replace("{whole}", str(whole))], capture_output=True, text=True, check=True
        ).stdout
        for whole in (True, False)
    }
    assert len(told) == 1
    assert told.pop().startswith("(20, 2, 3, 32, 32) ")


def test_the_latents_and_classes_of_a_seed_stay_what_they_are() -> None:
    """They are drawn from counters, with no device in it; a change of them is a change of every run."""
    shown = Renderer(small(seed=7), "cpu").block_at(np.arange(64))
    digest = hashlib.sha256(np.round(shown["latent"], 5).tobytes() + shown["label"].astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "928c918cdd0a6aa8"


def test_a_generator_that_breaks_the_contract_itself_is_caught() -> None:
    """`load` holds custom generators to it already; `render` trusts none."""
    renderer = Renderer(small(), "cpu")
    made = renderer.source.generator  # type: ignore[attr-defined]
    for spoil, told in ((lambda x: x.float(), "torch.float32"), (lambda x: x[1:], r"\(15, 3, 8, 8\)")):

        def spoilt(z, labels, seeds, spoil=spoil):  # type: ignore[no-untyped-def]
            images, finite = made.unchecked(z, labels, seeds)
            return spoil(images), finite

        broken = SimpleNamespace(num_classes=3, image_size=8, unchecked=spoilt)
        renderer.source.generator = broken  # type: ignore[attr-defined]
        with pytest.raises(BadImages, match=rf"the generator must return uint8 images .* got .*{told}"):
            renderer.block(at(0))
