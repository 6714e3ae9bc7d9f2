"""Files of anchors as a source: exactly what the live stream shows, and nothing that would be something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import small
from folders import MODEL, folder, of_images
from PIL import Image

from genray.commands.bench.bench import bench
from genray.commands.preview import preview
from genray.config.errors import ConfigError, UserError
from genray.config.load import build
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY
from genray.views.pin import pinned
from genray.views.sources import describe
from genray.views.sources.shards import ShardFormat, Shards
from genray.views.sources.stored import MANIFEST, Manifest, changes, decided_by
from genray.views.types import Block

COLUMNS = ("views", "label", "latent", "anchor", "epoch")


def store(config: Config, out: Path, anchors: int = 64, format: ShardFormat = "parquet", size: int = 8) -> Path:
    """The first anchors of a run as `genray generate` stores them, without a pool; returns the directory."""
    out.mkdir(parents=True)
    spec, renderer = describe(config), Renderer(config, "cpu")
    manifest = Manifest(
        name=spec.name,
        image_size=spec.image_size,
        latent_dim=spec.latent_dim,
        num_classes=spec.num_classes,
        views=spec.views,
        format=format,
        ticket_anchors=size,
        decided_by=decided_by(config),
        tickets=((0, anchors // size),),
    )
    for number in range(anchors // size):
        positions = np.arange(number * size, (number + 1) * size)
        manifest.shards(out).write(number, {**renderer.block_at(positions), "position": positions})
    (out / MANIFEST).write_text(manifest.to_json())
    return out


def stored(directory: Path, **sections: Any) -> Config:
    """A run on stored anchors."""
    pool = {"num_gpus": 0, **sections.pop("pool", {})}
    training = {"steps": 16, "log_every": 1, **sections.pop("training", {})}
    source = {"kind": "stored", "directory": str(directory)}
    return small(**{**sections, "source": source, "pool": pool, "training": training})


def test_stored_anchors_are_judged_by_the_generator_that_rendered_them(tmp_path: Path) -> None:
    """As the live stream is: here real images have no classes, and there all anchors are of one."""
    real = folder(tmp_path / "real", {"": 8})
    mix = {"source": {"kind": "mix", "directory": str(real)}, "view": {"kind": "independent"}}
    live = pinned(small(**mix, stream={"batch_size": 8, "ticket_batches": 1}))
    directory = store(live, tmp_path / "mixed", anchors=16)
    batch = {"batch_size": 8, "ticket_batches": 1}
    two = {"steps": 2}
    assert Plan.of(stored(directory, view={"kind": "independent"}, stream=batch, training=two)).num_classes == 0

    alone = {"classes": [1], "batch_size": 8, "ticket_batches": 1}
    directory = store(small(stream=alone), tmp_path / "alone", anchors=16)
    assert Plan.of(stored(directory, stream=alone, training=two)).steps == 2
    with pytest.raises(ConfigError, match=r"must leave at least two classes .* objective\.kind = 'supcon'"):
        Plan.of(stored(directory, stream=alone, training=two, objective={"kind": "supcon"}))


def assert_same(one: Block, other: Block) -> None:
    for name in COLUMNS:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"stream": {"num_views": 3, "num_anchors": 11, "num_neighbors": 2}},
        {"view": {"kind": "none"}},
        {"generator": {"num_classes": 0, "options": {"num_classes": 0}}},
    ],
    ids=["plain", "population", "tx only", "no classes"],
)
@pytest.mark.parametrize(("ticket_batches", "workers"), [(2, 1), (3, 1), (1, 2), (16, 4)])
def test_blocks_are_bit_for_bit_those_of_the_live_stream(
    tmp_path: Path, sections: dict[str, Any], format: ShardFormat, ticket_batches: int, workers: int
) -> None:
    sections = {**sections, "stream": {"batch_size": 8, **sections.get("stream", {})}}
    directory = store(small(**sections), tmp_path / "out", format=format)
    sections["stream"]["ticket_batches"] = ticket_batches
    config = stored(directory, **sections, learners={"num_workers": workers}, training={"steps": 8})
    course = Course(Plan.of(config))
    live, read = Renderer(small(**sections), "cpu"), Renderer(config)
    for index in range(len(course)):
        ticket = course.ticket(index)
        block = read.block(ticket)
        assert_same(block, live.block(ticket))
        assert block["position"].tolist() == ticket.positions.tolist()
    some = np.array([63, 0, 17, 16, 40, 41])
    assert_same(read.block_at(some), live.block_at(some))


@pytest.mark.parametrize("stream", [{}, {"reuse": 2, "reuse_window": 3}])
def test_training_makes_the_same_steps(tmp_path: Path, stream: dict[str, Any]) -> None:
    def records(config: Config, device: str | None = None) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        learner, renderer = Learner(Run.of(config), 0, torch.device("cpu")), Renderer(config, device)
        blocks = map(renderer.block, Course(learner.plan).of_learner(0))
        return [report.record for report in learner.train(blocks) if report.record]

    sections: dict[str, Any] = {"model": MODEL, "stream": stream}
    directory = store(small(**sections), tmp_path / "out", anchors=40)
    expected = records(small(**sections, training={"steps": 9, "log_every": 1}), "cpu")
    found = records(stored(directory, **sections, training={"steps": 9}))
    for name in ("loss", "batches", "alignment"):
        assert [record[name] for record in found] == [record[name] for record in expected]


def test_a_mix_and_images_are_read_back_too(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", {"0": 9, "owl": 8})
    mix = pinned(small(source={"kind": "mix", "directory": str(photos)}, objective={"kind": "supcon"}))
    only = pinned(of_images(photos))
    for name, config in (("mix", mix), ("images", only)):
        directory = store(config, tmp_path / name)
        sections = {"view": {"kind": config.view.kind}, "objective": {"kind": config.objective.kind}}
        read = stored(directory, **sections)
        assert Plan.of(read).num_classes == Plan.of(config).num_classes
        assert_same(Renderer(read).block_at(np.arange(64)), Renderer(config, "cpu").block_at(np.arange(64)))
    with pytest.raises(ConfigError, match=r"stream\.batch_size was 4, is 8"):  # it decides which places are real
        Plan.of(stored(tmp_path / "mix", stream={"batch_size": 8}, training={"steps": 8}))
    Plan.of(stored(tmp_path / "images", view={"kind": "none"}, stream={"batch_size": 8}, training={"steps": 8}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 2}, "seed was 0, is 2"),
        ({"view": {"std": 0.5}}, "view.std was 1.0, is 0.5"),
        ({"view": {"kind": "none"}}, "view.kind was 'gaussian', is 'none'; view.std was 1.0, is None"),
        ({"generator": {"truncation": 0.5}}, "generator.truncation was 1.0, is 0.5"),
        ({"stream": {"num_views": 4}}, "stream.num_views was 2, is 4"),
        ({"stream": {"num_anchors": 64}}, "stream.num_anchors was None, is 64"),
        ({"stream": {"num_neighbors": 3}}, "stream.num_neighbors was None, is 3"),
    ],
)
def test_a_configuration_that_shows_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    directory = store(small(), tmp_path / "out", anchors=8)
    with pytest.raises(ConfigError) as error:
        Plan.of(stored(directory, **changes, training={"steps": 2}))
    assert str(error.value).startswith(
        f"source.directory must hold what this configuration shows, got '{directory}', for which {told}"
    )


def test_what_does_not_decide_the_anchors_may_differ(tmp_path: Path) -> None:
    directory = store(small(), tmp_path / "out")
    plan = Plan.of(
        stored(
            directory,
            generator={"micro_batch": "auto"},
            stream={"batch_size": 16, "ticket_batches": 1, "reuse": 2, "reuse_window": 2},
            augment={"policy": "simclr"},
            training={"steps": 4},
        )
    )
    assert (plan.latent_dim, plan.num_classes, plan.rendered_views) == (4, 3, 2)


def test_what_may_change_in_a_run_may_differ(tmp_path: Path) -> None:
    values: dict[str, Any] = {"stream": {"batch_size": 4, "ticket_batches": 1}, "training": {"steps": 1}}
    directory = store(build({"name": "x", **values}), tmp_path / "out", anchors=4, size=4)
    values |= {"source": {"kind": "stored", "directory": str(directory)}, "pool": {"num_gpus": 0}}
    assert Plan.of(build({"name": "x", **values, "generator": {"cuda_graphs": True}})).image_size == 32
    with pytest.raises(ConfigError, match=r"for which generator\.precision was 'float32', is 'tf32'\. Change"):
        Plan.of(build({"name": "x", **values, "generator": {"precision": "tf32", "cuda_graphs": True}}))


def test_anchors_from_before_a_field_existed_are_those_of_its_default(tmp_path: Path) -> None:
    directory = store(small(), tmp_path / "out")
    values = json.loads((directory / MANIFEST).read_text())
    del values["decided_by"]["stream"]["num_neighbors"], values["decided_by"]["view"]["truncated"]
    (directory / MANIFEST).write_text(json.dumps(values))
    assert Plan.of(stored(directory)).rendered_views == 2
    with pytest.raises(ConfigError, match=r"for which view\.truncated was True, is False\. Change"):
        Plan.of(stored(directory, view={"truncated": False}))
    values["decided_by"]["stream"]["later"] = 3
    (directory / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"manifest\.json must be a manifest of genray generate: stream\.later: "):
        Plan.of(stored(directory))


def test_the_same_file_may_lie_elsewhere(tmp_path: Path) -> None:
    """Of a program and of prompts the content decides, not the place."""
    file, other = tmp_path / "prompts.txt", tmp_path / "again" / "prompts.txt"
    other.parent.mkdir()
    for path in (file, other):
        path.write_text("a cat\ntwo dogs\n")

    def config(path: Path) -> Config:
        generator = {"kind": "diffusers", "model": "a/pipeline", "prompts_file": str(path)}
        return pinned(build({"name": "x", "view": {"kind": "independent"}, "generator": generator}))

    theirs = Manifest("x", 512, 0, 2, 2, "parquet", 8, decided_by(config(file)))
    assert changes(theirs, config(other)) == []
    other.write_text("a cat\nthree dogs\n")
    found = changes(theirs, config(other))
    assert [line.partition(" was ")[0] for line in found] == ["generator.prompts_file", "generator.prompts_sha256"]


@pytest.mark.parametrize(("view", "field"), [("steered", "walks"), ("navigator", "file")])
def test_the_same_learned_views_may_lie_elsewhere(tmp_path: Path, view: str, field: str) -> None:
    kind = "walks" if view == "steered" else "navigator"
    for name in ("one", "two"):
        shutil.copy(EMBEDDED_DIRECTORY / f"{kind}.safetensors", tmp_path / f"{name}.safetensors")

    def config(name: str) -> Config:
        return pinned(build({"name": "x", "view": {"kind": view, field: str(tmp_path / f"{name}.safetensors")}}))

    theirs = Manifest("x", 32, 32, 10, 2, "parquet", 8, decided_by(config("one")))
    assert changes(theirs, config("two")) == []


def test_the_same_weights_may_lie_elsewhere(tmp_path: Path) -> None:
    """The embedded generator by its name and as a copy is one generator; with other weights it is another."""
    copy = tmp_path / "weights"
    shutil.copytree(EMBEDDED_DIRECTORY, copy)
    values: dict[str, Any] = {"stream": {"batch_size": 4, "ticket_batches": 1}, "training": {"steps": 1}}
    directory = store(build({"name": "x", **values}), tmp_path / "out", anchors=4, size=4)
    manifest = json.loads((directory / MANIFEST).read_text())
    from genray.config.generator import BigGANGenerator
    from genray.views.generators import fingerprint

    manifest["generator_sha256"] = fingerprint(BigGANGenerator())
    (directory / MANIFEST).write_text(json.dumps(manifest))
    values |= {"source": {"kind": "stored", "directory": str(directory)}, "pool": {"num_gpus": 0}}
    moved = build({"name": "x", **values, "generator": {"model": str(copy)}})
    assert Plan.of(moved).image_size == 32
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(ConfigError, match=r"generator\.model was 'digit-scenes', is '.*/weights'"):
        Plan.of(moved)


def test_a_run_must_not_be_longer_than_what_is_stored(tmp_path: Path) -> None:
    directory = store(small(), tmp_path / "out")
    assert Plan.of(stored(directory, training={"steps": 16})).steps == 16
    with pytest.raises(ConfigError) as error:
        Plan.of(stored(directory, training={"steps": 17}))
    assert str(error.value) == (
        "training.steps must be at most 16 for the 64 stored anchors of fakes:Fake, got 17; genray generate with "
        "more --anchors adds to them"
    )
    reused = {"reuse": 2, "reuse_window": 8}
    assert Plan.of(stored(directory, stream=reused, training={"steps": 24})).steps == 24
    with pytest.raises(ConfigError, match=r"must be at most 24 for the 64"):
        Plan.of(stored(directory, stream=reused, training={"steps": 26}))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    directory = store(small(), tmp_path / "out")
    read = Renderer(stored(directory))
    (directory / "00000003.parquet").unlink()
    read.block_at(np.arange(24))
    with pytest.raises(UserError, match=r"^source\.directory must hold whole files \(.*00000003\.parquet.*\); remove"):
        read.block_at(np.arange(20, 28))
    (directory / MANIFEST).rename(tmp_path / MANIFEST)
    with pytest.raises(
        ConfigError, match=r"^source\.directory must be one that genray generate has finished, got '.*'"
    ):
        Plan.of(stored(directory))
    (directory / MANIFEST).write_text('{"name": 3}')
    with pytest.raises(ConfigError, match=r"manifest\.json must be a manifest of genray generate: "):
        Plan.of(stored(directory))
    values = json.loads((tmp_path / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps({**values, "tickets": [[2, 4], [6, 8]]}))
    with pytest.raises(
        ConfigError, match=r"must hold the anchors from the first on, got .* with files 2 to 3 and 6 to 7"
    ):
        Plan.of(stored(directory))
    (directory / MANIFEST).write_text(json.dumps({**values, "tickets": [[0, 2], [6, 8]]}))
    assert describe(stored(directory)).end == 16


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_a_damaged_file_is_told(tmp_path: Path, format: ShardFormat) -> None:
    directory = store(small(), tmp_path / "out", format=format)
    path = Shards(directory, format, 8).path(2)
    content = path.read_bytes()
    views = Renderer(small(), "cpu").block_at(np.arange(16, 24))["views"]
    inside = content.index(views[3].tobytes()) + 100 if format == "parquet" else content.index(b"IDAT") + 30
    flipped = content[:inside] + bytes([content[inside] ^ 255]) + content[inside + 1 :]
    spoilt_ones = [content[: len(content) // 2], b"", b"something else", flipped]
    if format == "webdataset":  # what is no image
        latents = Renderer(small(), "cpu").block_at(np.arange(16, 24))["latent"]
        assert content.count(latents[3].tobytes()) == 1
        spoilt_ones.append(content.replace(latents[3].tobytes(), latents[4].tobytes()))
        label = re.search(rb'"label": (\d)', content)
        assert label is not None
        spoilt_ones.append(content[: label.start(1)] + b"7" + content[label.end(1) :])
    for spoilt in spoilt_ones:
        path.write_bytes(spoilt)
        with pytest.raises(
            UserError, match=r"^source\.directory must hold whole files \(.*00000002\.\w+ cannot be read"
        ):
            Renderer(stored(directory)).block_at(np.arange(16, 24))
    shutil.copy(Shards(directory, format, 8).path(1), path)
    with pytest.raises(UserError, match="holds other positions than its name says"):
        Renderer(stored(directory)).block_at(np.arange(16, 24))


def test_a_bench_has_no_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^source\.kind must be an endless source to be measured, got 'stored'$"):
        bench(stored(store(small(), tmp_path / "out")), repeats=1, seconds=1)


def test_it_is_previewed_and_planned(tmp_path: Path) -> None:
    config = stored(store(small(), tmp_path / "out"), model=MODEL)
    preview(config, tmp_path / "x.png", 3)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[1] > 3 * 64
    assert Plan.of(config).lines(config)[0] == "stored         fakes:Fake: 8 px, latents of 4, 3 classes"
