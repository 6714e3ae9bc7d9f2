"""Anchors rendered into files: a job that is cut off, goes on and is added to, and the command on a Ray."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from fakes import small
from folders import folder, of_images
from PIL import Image

from genray.cli import main
from genray.cluster import ray_cluster
from genray.cluster.placement import Verdict
from genray.commands import generate
from genray.commands.bench import micro_batch
from genray.commands.generate import MissingTickets, ticket_range
from genray.commands.manifest import ranges
from genray.config.errors import UserError
from genray.config.load import build
from genray.config.run import Config
from genray.runs import directory
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY
from genray.views.pin import pinned
from genray.views.sources.shards import ShardFormat, Shards
from genray.views.sources.stored import MANIFEST, Manifest, read_manifest

GENRAY = Path(sys.executable).with_name("genray")
FORMATS: tuple[ShardFormat, ...] = ("parquet", "webdataset")


class Here:
    """Renders the tickets of a job in this process, in place of a pool; may be cut off after some."""

    def __init__(self) -> None:
        self.rendered: list[int] = []
        self.cut_off_after: int | None = None

    def __call__(self, run: Run, course: MissingTickets, shards: Shards, *rest: Any) -> None:
        renderer = Renderer(run.config, "cpu")
        for index in range(len(course)):
            if self.cut_off_after == len(self.rendered):
                (shards.directory / f".{shards.path(course.numbers[index]).name}.123").write_bytes(b"a part of it")
                raise KeyboardInterrupt
            block = renderer.block(course.ticket(index))
            shards.write(int(block["ticket"][0]), block)
            self.rendered.append(int(block["ticket"][0]))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    found = Here()
    monkeypatch.setattr(generate, "render_tickets", found)
    return found


def written(config: Config, out: Path, **asked: Any) -> Manifest:
    return generate.generate(config, out, **{"anchors": 40, "say": lambda text: None, **asked})


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_every_ticket_is_a_file_of_the_anchors_in_a_row(tmp_path: Path, here: Here) -> None:
    config = small(stream={"num_views": 3}, learners={"num_workers": 2})
    manifest = written(config, tmp_path / "out")
    assert here.rendered == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"0000000{number}.parquet" for number in range(5)),
        MANIFEST,
    ]
    assert (manifest.anchors, manifest.tickets, manifest.ticket_anchors, manifest.end) == (40, ((0, 5),), 8, 40)
    assert (manifest.name, manifest.image_size, manifest.latent_dim) == ("fakes:Fake", 8, 4)
    assert (manifest.num_classes, manifest.views, manifest.faults) == (3, 3, {})
    assert set(manifest.decided_by) == {"seed", "source", "generator", "view", "stream"}
    assert manifest.decided_by["stream"]["num_views"] == 3
    assert manifest.versions is not None
    assert {"python", "genray", "torch"} <= set(manifest.versions)
    assert manifest.config is not None
    assert manifest.config["learners"]["num_workers"] == 2
    assert read_manifest(tmp_path / "out" / MANIFEST) == manifest


def test_parquet_holds_pixels_as_they_are(tmp_path: Path, here: Here) -> None:
    written(small(), tmp_path)
    shown = Renderer(small(), "cpu").block_at(np.arange(40))
    table = pyarrow.parquet.read_table(tmp_path / "00000003.parquet").to_pydict()
    for row in range(8):
        assert table["views"][row] == shown["views"][24 + row].tobytes()
        assert table["latent"][row] == shown["latent"][24 + row].ravel().tolist()
        assert [table[name][row] for name in ("position", "anchor", "label")] == [24 + row] * 2 + [
            shown["label"][24 + row]
        ]


def test_a_webdataset_holds_image_files(tmp_path: Path, here: Here) -> None:
    written(small(stream={"num_anchors": 7}), tmp_path, format="webdataset")
    shown = Renderer(small(stream={"num_anchors": 7}), "cpu").block_at(np.arange(40))
    with tarfile.open(tmp_path / "00000001.tar") as archive:
        names = archive.getnames()
        content = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    noted = json.loads(content["000000000009.json"])
    assert noted.pop("crc32") > 0
    assert names[:4] == [f"000000000008.{name}" for name in ("json", "latent.npy", "0.png", "1.png")]
    assert len(names) == 4 * 8
    assert noted == {
        "position": 9,
        "anchor": shown["anchor"][9],
        "epoch": 1,
        "label": shown["label"][9],
    }
    with Image.open(io.BytesIO(content["000000000009.1.png"])) as image:
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), shown["views"][9, 1])
    np.testing.assert_array_equal(np.load(io.BytesIO(content["000000000009.latent.npy"])), shown["latent"][9])


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_that_was_cut_off_goes_on(tmp_path: Path, here: Here, format: ShardFormat) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    written(small(), whole, format=format)
    here.rendered.clear()
    for end in (2, 3):
        here.cut_off_after = end
        with pytest.raises(KeyboardInterrupt):
            written(small(), cut, format=format)
        assert not (cut / MANIFEST).exists()
    here.cut_off_after = None
    assert written(small(), cut, format=format).anchors == 40
    assert here.rendered == [0, 1, 2, 3, 4]
    assert files(cut) == files(whole)


def test_more_anchors_are_added_and_nothing_is_rendered_again(tmp_path: Path, here: Here) -> None:
    written(small(), tmp_path, tickets=(3, 5), anchors=None)
    assert read_manifest(tmp_path / MANIFEST).end == 0
    manifest = written(small(), tmp_path, anchors=9)
    assert (manifest.tickets, manifest.anchors, manifest.end) == (((0, 2), (3, 5)), 32, 16)
    assert written(small(), tmp_path).tickets == ((0, 5),)
    assert here.rendered == [3, 4, 0, 1, 2]
    assert written(small(), tmp_path, anchors=8).tickets == ((0, 5),)  # less is there already
    assert len(here.rendered) == 5


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "asked", "told"),
    [
        ({"seed": 3}, {}, "seed was 0, is 3"),
        ({"view": {"std": 0.5}}, {}, "view.std was 1.0, is 0.5"),
        ({"generator": {"options": {"bad": "x"}}}, {}, "generator.options.bad was None, is 'x'"),
        ({"stream": {"num_views": 3}}, {}, "stream.num_views was 2, is 3"),
        ({"stream": {"num_anchors": 100}}, {}, "stream.num_anchors was None, is 100"),
        ({"stream": {"num_neighbors": 5}}, {}, "stream.num_neighbors was None, is 5"),
        ({}, {"format": "webdataset"}, "--format was 'parquet', is 'webdataset'"),
        ({"stream": {"ticket_batches": 3}}, {}, "anchors in a ticket was 8, is 12"),
    ],
)
def test_other_settings_need_another_directory(
    tmp_path: Path, here: Here, changes: dict[str, Any], asked: dict[str, Any], told: str, finished: bool
) -> None:
    if finished:
        written(small(), tmp_path)
    else:
        here.cut_off_after = 1
        with pytest.raises(KeyboardInterrupt):
            written(small(), tmp_path)
        here.cut_off_after = None
    before, rendered = files(tmp_path) if finished else {}, len(here.rendered)
    with pytest.raises(
        UserError, match=rf"^--out must be new for other settings, got '.*', begun with {told}\. Choose"
    ):
        written(small(**changes), tmp_path, **asked)
    assert len(here.rendered) == rendered
    if finished:
        assert files(tmp_path) == before
    written(small(augment={"policy": "simclr"}, training={"steps": 9}, learners={"num_gpus": 0}), tmp_path)


def test_how_many_is_asked_for_in_one_way(tmp_path: Path) -> None:
    asked = small(training={"steps": 7}, stream={"reuse": 2, "reuse_window": 3})
    config = generate.job_config(asked, tmp_path)
    assert ticket_range(config, asked, None, 9) == (0, 2)
    assert ticket_range(config, asked, None, 8) == (0, 1)
    assert ticket_range(config, asked, (4, 6), None) == (4, 6)
    fresh = Plan.of(asked).fresh_steps(7)
    assert ticket_range(config, asked, None, None) == (0, -(-fresh * 4 // 8))  # what the run shows
    for tickets, anchors, told in (
        ((0, 1), 8, "--tickets or --anchors must be given, not both"),
        ((3, 3), None, "--tickets must be FIRST:LAST with 0 <= FIRST < LAST, got 3:3"),
        (None, 0, "--anchors must be at least 1, got 0"),
    ):
        with pytest.raises(UserError) as error:
            ticket_range(config, asked, tickets, anchors)
        assert str(error.value) == told


def test_a_job_has_no_learners_and_room_for_its_tickets(tmp_path: Path) -> None:
    config = small(render_on="learners", stream={"reuse": 3, "ticket_batches": "auto"}, learners={"num_workers": 2})
    job = generate.job_config(replace(config, pool=replace(config.pool, look_ahead_mib=1)), tmp_path)
    assert (job.render_on, job.stream.reuse, job.stream.ticket_batches) == ("pool", 1, 4)
    assert (job.learners.num_workers, job.learners.num_cpus, job.learners.num_gpus) == (1, 0, 0)
    assert Plan.of(job).look_ahead >= 2
    with pytest.raises(UserError, match=r"^source\.kind must be one that can be rendered into files, got 'stored'"):
        generate.job_config(small(source={"kind": "stored", "directory": "x"}, pool={"num_gpus": 0}), tmp_path)


def test_a_job_keeps_the_rules_of_a_pool(tmp_path: Path) -> None:
    """Which a run whose learners decode for themselves need not keep."""
    images = of_images(folder(tmp_path / "photos", {"a": 9}), render_on="learners", pool={"num_gpus": 1})
    with pytest.raises(UserError, match=r"^pool\.num_gpus must be 0 for source\.kind = 'images'"):
        generate.job_config(images, tmp_path / "out")


def test_files_are_named_for_good(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "photos", {"a": 9})
    monkeypatch.chdir(tmp_path)
    manifest = written(of_images(Path("photos")), tmp_path / "out", anchors=8)
    assert manifest.decided_by["source"]["directory"] == str(tmp_path / "photos")
    assert len(manifest.decided_by["source"]["digest"]) == 64


def test_all_versions_that_rendered_are_told(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(small(), tmp_path, anchors=8).versions
    assert first is not None
    monkeypatch.setattr("genray.commands.manifest.version", lambda name: "99.0" if name == "torch" else first[name])
    assert written(small(), tmp_path, anchors=8).versions == first  # nothing was left to render
    both = {**first, "torch": f"{first['torch']}, 99.0"}
    here.cut_off_after = 2
    with pytest.raises(KeyboardInterrupt):
        written(small(), tmp_path, anchors=24)
    here.cut_off_after = None
    monkeypatch.undo()
    monkeypatch.setattr(generate, "render_tickets", here)
    assert written(small(), tmp_path, anchors=24).versions == both
    assert written(small(), tmp_path, anchors=32).versions == both


def test_the_tickets_that_are_missing_are_those_of_the_whole_course() -> None:
    plan = Plan.of(small(training={"steps": 20}))
    some = MissingTickets(plan, numbers=(1, 4, 7))
    assert len(some) == 3
    for index, number in enumerate(some.numbers):
        ticket, same = some.ticket(index), Course(plan).ticket(number)
        assert ticket.number == same.number == number
        np.testing.assert_array_equal(ticket.positions, np.arange(8 * number, 8 * number + 8))


def test_numbers_as_ranges() -> None:
    assert ranges([]) == []
    assert ranges([4]) == [(4, 5)]
    assert ranges([0, 1, 2, 5]) == [(0, 3), (5, 6)]
    assert ranges([1, 3, 5]) == [(1, 2), (3, 4), (5, 6)]


def test_a_micro_batch_that_is_searched_for_is_kept(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    searched = []

    @contextmanager
    def joined(address: str | None) -> Any:
        yield False

    monkeypatch.setattr(ray_cluster, "joined", joined)
    monkeypatch.setattr(ray_cluster, "check_placement", lambda config, autoscaling: Verdict(True, ""))
    monkeypatch.setattr(micro_batch, "measure_by_task", lambda config: searched.append(config) or 5)
    auto = small(generator={"micro_batch": "auto"})
    for anchors in (8, 40):
        manifest = written(auto, tmp_path, anchors=anchors)
        assert manifest.decided_by["generator"]["micro_batch"] == 5
    assert len(searched) == 1
    with pytest.raises(UserError, match=r"generator\.micro_batch was 5, is 16"):
        written(small(), tmp_path)


def test_other_weights_of_the_same_name_are_no_way_to_go_on(tmp_path: Path, here: Here) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(EMBEDDED_DIRECTORY, weights)
    stream = {"batch_size": 4, "ticket_batches": 1}
    config = build({"name": "x", "generator": {"model": str(weights)}, "stream": stream})
    first = written(config, tmp_path / "out", anchors=4)
    assert len(first.generator_sha256 or "") == 64
    (weights / "config.json").write_text((weights / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"begun with generator weights was '\w{64}', is '\w{64}'\. Choose"):
        written(config, tmp_path / "out", anchors=8)
    assert here.rendered == [0]


def test_a_second_job_is_refused_and_a_place_that_cannot_be_written(tmp_path: Path, here: Here) -> None:
    taken = tmp_path / "taken"
    (taken / generate.JOB_NAME).mkdir(parents=True)
    run = directory.RunDirectory(taken / generate.JOB_NAME)
    with run.locked(), pytest.raises(UserError, match=r"^--out must not be that of a job in progress, got '.*taken'"):
        written(small(), taken)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^--out must be a directory that can be written, got '.*file' \("):
        written(small(), tmp_path / "file")


def test_images_are_stored_too(tmp_path: Path, here: Here) -> None:
    config = pinned(of_images(folder(tmp_path / "photos", {"a": 5, "b": 6})))
    manifest = written(config, tmp_path / "out")
    assert (manifest.latent_dim, manifest.num_classes, manifest.views) == (0, 2, 1)
    assert "generator" not in manifest.decided_by
    assert "latent" not in pyarrow.parquet.read_table(tmp_path / "out" / "00000000.parquet").column_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tickets", "three"], "--tickets must be FIRST:LAST, got 'three'"),
        (["--tickets", "2:1"], "--tickets must be FIRST:LAST with 0 <= FIRST < LAST, got 2:1"),
        (["--tickets", "0:1", "--anchors", "3"], "--tickets or --anchors must be given, not both"),
        (["--anchors", "0"], "--anchors must be at least 1, got 0"),
    ],
)
def test_a_mistake_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main.main(["generate", "demo", "--out", str(tmp_path / "out"), *arguments])
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"genray: {message}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_the_command_renders_in_a_pool(tmp_path: Path) -> None:
    """On a Ray of its own: what the pool writes is what this process would, and a second time nothing is left to do."""
    values = small(pool={"num": 2, "num_gpus": 0, "num_cpus": 0.25}, tracking={"mlflow": False}).to_dict()
    (tmp_path / "small.json").write_text(json.dumps(values))
    run: Callable[..., subprocess.CompletedProcess[str]] = lambda: subprocess.run(  # noqa: E731
        [GENRAY, "generate", str(tmp_path / "small.json"), "--out", str(tmp_path / "out"), "--anchors", "60"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    done = run()
    assert done.returncode == 0, done.stderr
    assert "64 anchors of 2 images in " in done.stdout
    assert "train on them with --source.kind stored --source.directory " in done.stdout
    manifest = read_manifest(tmp_path / "out" / MANIFEST)
    assert (manifest.tickets, manifest.faults) == (((0, 8),), {})
    shards, renderer = manifest.shards(tmp_path / "out"), Renderer(small(), "cpu")
    expected = Shards(tmp_path / "expected", "parquet", 8)
    expected.directory.mkdir()
    for number in range(8):
        expected.write(number, renderer.block(Course(Plan.of(small())).ticket(number)))
        assert shards.path(number).read_bytes() == expected.path(number).read_bytes()
    assert not (tmp_path / "out" / generate.JOB_NAME).exists()
    again = run()
    assert (again.returncode, again.stderr) == (0, "")
    assert "0 of 8 files are missing" in again.stdout
