"""Runs on an object store: what lies where, and how another machine goes on; the store is a real S3 server."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import torch
from fakes import small
from harness import Run
from moto.server import ThreadedMotoServer

from genray.cli.main import main
from genray.commands.configured import configured
from genray.config.errors import UserError
from genray.config.files import join_address
from genray.runs import checkpoint, faults, filenames, jsonl, mirror, store
from genray.runs.directory import RunDirectory, list_runs
from genray.runs.mirror import Mirror, mirrored

BUCKET = "genray-test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A storage path in a bucket of its own."""
    for name, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "word", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"{BUCKET}-{abs(hash(tmp_path)):x}"
    boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1").create_bucket(Bucket=bucket)
    go_to(monkeypatch, tmp_path, "first")
    return f"s3://{bucket}/all/runs?endpoint_override=http://{server}&region=us-east-1"


def go_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str) -> Path:
    """Be on another machine from here on: none of the files on the one before can be seen."""
    home = tmp_path / machine
    monkeypatch.setenv("GENRAY_CACHE", str(home))
    return home


def store_of(run: RunDirectory) -> store.StoredRun:
    stored = store.of(run.path)
    assert stored is not None
    return stored


def begun(url: str, name: str = "run") -> RunDirectory:
    run = RunDirectory.of(config := small(name=name, storage_path=url))
    run.refresh()
    run.claim(config)
    return run


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def driven(run: RunDirectory) -> Iterator[Callable[[], None]]:
    """As a driver does; yields what carries at once."""
    with run.locked(), mirrored(run.path) as brought:
        yield brought


def checkpointed(run: RunDirectory, step: int) -> None:
    """What Ray Train leaves in a store."""
    stored = store_of(run)
    draft = run.path / "draft"
    draft.mkdir()
    model = torch.nn.Linear(1, 1)
    checkpoint.save(draft, step, model, torch.optim.SGD(model.parameters()))
    for file in draft.iterdir():
        stored.upload(file, f"checkpoint_{step}/{file.name}")
    shutil.rmtree(draft)


def test_a_directory_is_its_own_and_has_no_store(tmp_path: Path) -> None:
    run = RunDirectory.of(small(name="run", storage_path=str(tmp_path)))
    assert run.path == tmp_path / "run"
    assert store.of(run.path) is None
    run.claim(small(name="run", storage_path=str(tmp_path)))
    with mirrored(run.path):
        faults.note(run.faults, "one")
    assert {path.name for path in run.path.iterdir()} == {"config.json", "run.lock", "faults.jsonl"}


def test_another_machine_finds_the_records_and_goes_on_with_them(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    with driven(run):
        jsonl.append(run.metrics, {"step": 4, "loss": 1.0})
        (run.path / "processes-host.jsonl").write_text("{}\n")
    go_to(monkeypatch, tmp_path, "second")
    there = begun(url)
    assert there.path != run.path
    assert jsonl.read(there.metrics) == [{"step": 4, "loss": 1.0}]
    assert not list(there.path.glob("processes-*"))
    with driven(there):
        jsonl.append(there.metrics, {"step": 8, "loss": 0.5})
    go_to(monkeypatch, tmp_path, "first")
    assert [record["step"] for record in jsonl.read(begun(url).metrics)] == [4, 8]


def test_what_a_killed_driver_had_not_carried_is_carried_by_the_next_one(url: str) -> None:
    run = begun(url)
    jsonl.append(run.metrics, {"step": 4})
    again = begun(url)
    assert jsonl.read(again.metrics) == [{"step": 4}]
    with driven(again):
        pass
    stored = store_of(run)
    assert json.loads(stored.read("metrics.jsonl") or b"") == {"step": 4}


def test_a_run_that_was_deleted_from_the_store_is_a_new_one(url: str, server: str) -> None:
    run = begun(url)
    with driven(run):
        jsonl.append(run.metrics, {"step": 4})
    stored = store_of(run)
    for name in stored.files():
        stored.remove(name)
    assert not begun(url).metrics.exists()


def test_other_settings_are_refused_on_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    with driven(run):
        jsonl.append(run.metrics, {"step": 4})
    go_to(monkeypatch, tmp_path, "second")
    other = small(name="run", storage_path=url, seed=7)
    there = RunDirectory.of(other)
    there.refresh()
    with pytest.raises(UserError, match="name must be new for a run with other settings"):
        there.claim(other)


def test_a_second_driver_is_refused_until_the_first_is_dead(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    with run.locked():
        go_to(monkeypatch, tmp_path, "second")
        there = RunDirectory.of(small(name="run", storage_path=url))
        assert there.in_progress()
        with pytest.raises(UserError, match="name must not be that of a run in progress, got 'run', driven on"):
            there.refresh()
        monkeypatch.setattr(store, "LEASE_TIMEOUT_S", -1.0)
        there.refresh()  # no sign of life for too long
    assert not there.in_progress()


def test_faults_of_other_nodes_reach_the_driver_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(url)
    stored = store_of(run)
    driver = Mirror(stored)
    faults.note(run.faults, "here")
    driver.sync()
    go_to(monkeypatch, tmp_path, "node")
    node = RunDirectory.of(small(name="run", storage_path=url))
    for fault in ("there", "again"):
        faults.note(node.faults, fault)
        driver.sync()
        driver.sync()
    Mirror(stored).sync()  # of a driver that is started again
    assert [line["fault"] for line in jsonl.read(run.faults)] == ["here", "there", "again"]
    assert len((stored.read("faults.jsonl") or b"").splitlines()) == 3


def test_pictures_and_exports_of_other_nodes_reach_the_driver(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    go_to(monkeypatch, tmp_path, "node")
    node = RunDirectory.of(small(name="run", storage_path=url))
    (node.export / "deep").mkdir(parents=True)
    (node.export / "deep" / "model").write_text("weights")
    store.upload(node.export, node.path)
    with driven(run) as brought:
        brought()
        assert (run.export / "deep" / "model").read_text() == "weights"


def test_a_run_is_asked_to_stop_through_the_store_whatever_is_carried(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "SYNC_EVERY_S", 0.05)
    monkeypatch.setattr(Mirror, "sync", lambda self: carried.wait(60))
    carried = threading.Event()
    run = begun(url)
    go_to(monkeypatch, tmp_path, "node")
    learner = RunDirectory.of(small(name="run", storage_path=url))
    with driven(run):
        assert not learner.stop_requested()
        run.stop.touch()
        eventually(learner.stop_requested)
        carried.set()
    assert not learner.stop_requested()


def test_a_driver_ends_when_another_machine_has_taken_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "SYNC_EVERY_S", 0.05)
    run, ended, said = begun(url), threading.Event(), []
    jsonl.append(run.metrics, {"step": 4})
    with run.locked(), mirrored(run.path, said.append, ended.set):
        first = store_of(run)
        go_to(monkeypatch, tmp_path, "second")
        there = RunDirectory.of(small(name="run", storage_path=url))
        other = store_of(there)

        def taken_over() -> bool:
            other.renew_lease()  # until it is seen: the first machine may write its own lease over it
            return ended.wait(0.1)

        eventually(taken_over)
        assert any("run was taken over on" in line for line in said)
        eventually(lambda: all(thread.name != "genray-mirror" for thread in threading.enumerate()))
        other.renew_lease()
        jsonl.append(run.metrics, {"step": 8})
        (run.path / "stop").touch()
    assert first.exists(filenames.LEASE), "the other's sign of life is gone"
    assert not first.exists(filenames.STOP), "the other was asked to stop"
    assert b'"step": 8' not in (first.read("metrics.jsonl") or b"")


def test_carrying_goes_on_after_a_failure_of_any_kind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "SYNC_EVERY_S", 0.05)
    sync, fails = Mirror.sync, [ValueError("odd"), OSError("full")]

    def failing(self: Mirror) -> None:
        if fails:
            raise fails.pop(0)
        sync(self)

    monkeypatch.setattr(Mirror, "sync", failing)
    run, said = begun(url), []
    with run.locked(), mirrored(run.path, said.append):
        jsonl.append(run.metrics, {"step": 4})
        eventually(lambda: store_of(run).exists("metrics.jsonl"))
    assert said == ["run cannot be synchronised with its store at the moment; trying again (odd)"]


def test_what_ended_a_run_is_told_where_the_store_is_away_too(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(url)

    def away(self: Mirror) -> None:
        raise UserError("the store is away")

    monkeypatch.setattr(Mirror, "sync", away)
    with pytest.raises(RuntimeError, match="it broke"), run.locked(), mirrored(run.path):
        raise RuntimeError("it broke")
    with pytest.raises(UserError, match="away"), run.locked(), mirrored(run.path):
        pass


def test_a_list_of_checkpoints_of_the_same_length_is_taken_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    stored = store_of(run)
    for name in ("checkpoint_manager_snapshot.json", "mlflow.json"):
        stored.write(name, '["checkpoint_4"]')
    go_to(monkeypatch, tmp_path, "second")
    there = store_of(begun(url))
    there.download_checkpoints()
    for name in ("checkpoint_manager_snapshot.json", "mlflow.json"):
        stored.write(name, '["checkpoint_8"]')
    there.download_checkpoints()
    assert (there.directory / "checkpoint_manager_snapshot.json").read_text() == '["checkpoint_8"]'
    there.refresh()
    assert (there.directory / "mlflow.json").read_text() == '["checkpoint_8"]'


def test_faults_of_a_node_that_takes_over_are_neither_lost_nor_doubled(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    faults.note(run.faults, "of the first driver")
    go_to(monkeypatch, tmp_path, "node")
    node = RunDirectory.of(small(name="run", storage_path=url))
    for number in range(3):
        faults.note(node.faults, f"of the node, {number}")
    Mirror(store_of(run)).sync()
    faults.note(node.faults, "of the node, later")
    store_of(run).remove(filenames.LEASE)  # a minute later
    again = begun(url)  # there, where the driver is now
    with driven(again) as brought:
        brought()
        brought()
    expected = ["of the first driver", *(f"of the node, {number}" for number in range(3)), "of the node, later"]
    assert [line["fault"] for line in jsonl.read(again.faults)] == expected
    assert len((store_of(run).read("faults.jsonl") or b"").splitlines()) == 5


def test_the_last_whole_checkpoint_of_the_store_is_taken(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(url)
    with driven(run):
        jsonl.append(run.metrics, {"step": 8})
    stored = store_of(run)
    for step in (4, 8):
        checkpointed(run, step)
    go_to(monkeypatch, tmp_path, "second")
    there = begun(url)
    assert checkpoint.last_step(there.path) == 8
    stored.write(f"checkpoint_8/{filenames.CHECKPOINT_STATE}", '{"step": 8')  # cut short
    assert checkpoint.last_step(there.path) == 4
    assert [path.name for path in checkpoint.tidy(there.path, keep=2)] == ["checkpoint_8"]
    assert not [name for name in stored.files() if name.startswith("checkpoint_8")]
    assert checkpoint.last_step(run.path) == 4  # what is gone from the store is gone on the first machine too


def test_runs_are_listed_and_read_by_their_address(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        with driven(begun(url, name)):
            pass
    go_to(monkeypatch, tmp_path, "second")
    assert [run.path.name for run in list_runs(url)] == ["one", "two"]
    main(["list", url])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "one", "two"]
    loaded = configured(join_address(url, "two"))
    assert (loaded.name, loaded.storage_path) == ("two", url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("genray-test", "no-such-bucket"), "storage_path must be a directory or an address that can be written, got"),
        (("s3://", "s4://"), "storage_path must be a directory or an address that can be written, got 's4://"),
    ],
)
def test_an_address_that_is_of_no_use_is_told_in_a_line(
    url: str, change: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "demo", "--name", "run", "--storage_path", url.replace(*change)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_that_the_store_does_not_have_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", join_address(url, "none")])
    assert ended.value.code == 2
    assert "the run must be one that the store has, got" in capsys.readouterr().err


@pytest.mark.ray
def test_a_run_killed_on_one_machine_goes_on_exactly_on_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "moved")
    run.values["storage_path"] = url
    for machine, reached in (("first", 11), ("second", 23)):
        go_to(monkeypatch, tmp_path, machine)
        run.path = store.local_directory(url) / "moved"
        run.start()
        run.wait_for(lambda reached=reached: run.step() >= reached)  # type: ignore[misc]
        if machine == "first":
            run.kill_everything()
            stored = store_of(run)
            stored.remove(filenames.LEASE)  # a minute later
    assert run.stop() == 75
    assert run.assert_exact() >= 23
    assert not (run.path / "stop").exists()
    assert checkpoint.last_step(run.path) >= 23
