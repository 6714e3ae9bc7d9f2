"""Folded weights on disk: used where they are right, made again where they are not, and nothing depends on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import network, random_model, write
from safetensors.torch import save_file

from genray.config.errors import ConfigError
from genray.views.generators import checkpoints, fetch, fold_cache, load
from genray.views.generators.biggan import load_biggan
from genray.views.generators.fold import fold

HOUR_NS = 3600 * 10**9


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that were folded."""
    found: list[Path] = []

    def counted(layout, path):
        found.append(path)
        return fold(layout, path)

    monkeypatch.setattr(fold_cache, "fold", counted)
    return found


def rendered(directory: Path, truncation: float = 1.0) -> torch.Tensor:
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    return load_biggan(directory, truncation, "cpu")(z, torch.tensor([0, 3, 6]))


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "folded").glob("*.safetensors"))


def test_the_second_load_folds_nothing_and_renders_the_same(cache, checkpoint, folds):
    directory = checkpoint()
    first = rendered(directory)
    assert len(folds) == len(kept(cache)) == 1
    assert torch.equal(rendered(directory), first)
    assert len(folds) == 1


def test_one_file_serves_every_truncation(cache, checkpoint, folds, monkeypatch):
    directory = checkpoint()
    rendered(directory, 1.0)
    from_the_cache = rendered(directory, 0.43)
    assert len(folds) == len(kept(cache)) == 1
    monkeypatch.setenv("GENRAY_CACHE", str(cache / "another"))
    assert torch.equal(rendered(directory, 0.43), from_the_cache)
    assert len(folds) == 2


def test_a_second_process_needs_neither_the_package_nor_the_weights_own_form(cache, checkpoint):
    directory = checkpoint()
    rendered(directory)
    code = (
        "import sys; from pathlib import Path; from genray.views.generators.biggan import load_biggan;"
        f"load_biggan(Path({str(directory)!r}), 1.0, 'cpu');"
        "print([m for m in ('pytorch_pretrained_biggan', 'boto3', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def hollow(path: Path) -> None:
    """As long as it was, with a hole, as a machine may leave it that loses its power."""
    content = bytearray(path.read_bytes())
    content[-40_000:-36_000] = bytes(4000)
    path.write_bytes(content)


def foreign(path: Path) -> None:
    save_file({"something": torch.ones(3)}, path)


def of_another(path: Path) -> None:
    """Whole, but of another checkpoint."""
    cache, config = path.parents[1], network(32)
    rendered(write(cache / "another", config, random_model(config, seed=1).state_dict()))
    (made,) = set(kept(cache)) - {path}
    made.replace(path)


@pytest.mark.parametrize("spoil", [cut, hollow, foreign, of_another, lambda path: path.write_bytes(b"")])
def test_a_spoilt_file_is_made_again(cache, checkpoint, folds, monkeypatch, spoil: Callable[[Path], object]):
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", HOUR_NS)  # no digest is noted, however slow this is
    directory = checkpoint()
    first = rendered(directory)
    (path,) = kept(cache)
    spoil(path)
    before = len(folds)
    assert torch.equal(rendered(directory), first)
    assert len(folds) == before + 1
    assert torch.equal(rendered(directory), first)
    assert len(folds) == before + 1
    assert {file.suffix for file in path.parent.iterdir()} == {".safetensors", ".lock"}


def test_what_a_killed_process_left_is_cleared_away(cache, checkpoint):
    directory = checkpoint()
    rendered(directory)
    (path,) = kept(cache)
    path.unlink()
    left = path.with_name(f".{path.name}.0123abcd")
    left.write_bytes(b"half")
    rendered(directory)
    assert path.exists()
    assert not left.exists()


def test_other_weights_of_the_same_size_and_time_are_not_mistaken(cache, checkpoint, folds, monkeypatch):
    """The note is trusted only where the system's own record of the last change is the same."""
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", -1)  # as if it had lain there for long
    other = checkpoint(lambda state: state["generator.conv_to_rgb.bias"].add_(0.5)) / "model.safetensors"
    content = other.read_bytes()
    directory = checkpoint()
    path = directory / "model.safetensors"
    first, times = rendered(directory), path.stat()
    assert len(list((cache / "folded").glob("*.json"))) == 1
    time.sleep(0.05)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (times.st_size, times.st_mtime_ns, times.st_ino)
    assert not torch.equal(rendered(directory), first)
    assert len(folds) == len(kept(cache)) == 2


def test_an_unchanged_file_is_read_once_for_its_digest(cache, checkpoint, monkeypatch):
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", -1)
    directory = checkpoint()
    rendered(directory)
    digests: list[object] = []
    monkeypatch.setattr(fold_cache.hashlib, "file_digest", lambda *args: digests.append(args))
    rendered(directory)
    assert digests == []


def test_a_file_that_has_just_been_written_is_not_noted(cache, checkpoint, monkeypatch):
    """Another change within the same tick of the file system's clock would not show."""
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", HOUR_NS)
    rendered(checkpoint())
    assert list((cache / "folded").glob("*.json")) == []


@pytest.mark.parametrize("content", ["", "[1]", '{"digest": 3}', "null"])
def test_a_spoilt_note_is_written_again(cache, checkpoint, folds, monkeypatch, content):
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", -1)
    directory = checkpoint()
    first = rendered(directory)
    (note,) = (cache / "folded").glob("*.json")
    good = note.read_text()
    note.write_text(content)
    assert torch.equal(rendered(directory), first)
    assert note.read_text() == good
    assert len(folds) == 1


def test_weights_replaced_while_they_are_folded_are_not_kept_as_those_before(cache, checkpoint, monkeypatch):
    """Or a copy of the ones before, anywhere on this machine, would render as the ones after."""
    directory = checkpoint()
    path = directory / "model.safetensors"
    before = path.read_bytes()

    def replaced(layout, source):
        checkpoint(lambda state: state["generator.conv_to_rgb.bias"].add_(0.5))
        return fold(layout, source)

    monkeypatch.setattr(fold_cache, "fold", replaced)
    after = rendered(directory)
    monkeypatch.setattr(fold_cache, "fold", fold)
    assert not kept(cache)
    path.write_bytes(before)
    assert not torch.equal(rendered(directory), after)


def test_those_that_only_read_do_not_wait(cache, checkpoint, monkeypatch):
    monkeypatch.setattr(fold_cache, "TIMESTAMP_MARGIN_NS", -1)
    directory = checkpoint()
    images = rendered(directory)

    def held(*_: object) -> None:
        raise AssertionError("it would wait")

    monkeypatch.setattr(fold_cache, "file_lock", held)
    assert torch.equal(rendered(directory), images)


def test_another_layout_of_the_same_weights_is_kept_apart(cache, checkpoint, folds):
    directory = checkpoint()
    first = rendered(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eps": 0.1}))
    assert not torch.equal(rendered(directory), first)
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("where", ["no directory", "full"])
def test_where_nothing_can_be_kept_it_renders_all_the_same(cache, checkpoint, folds, monkeypatch, where):
    directory = checkpoint()
    if where == "no directory":
        cache.write_text("")
    else:

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(fold_cache, "save_file", full)
    assert torch.equal(rendered(directory), rendered(directory))
    assert len(folds) == 2
    assert kept(cache) == []


def test_a_wrong_checkpoint_is_refused_each_time(cache, checkpoint):
    directory = checkpoint(lambda state: state.update(extra=torch.ones(1)))
    for _ in range(2):
        with pytest.raises(ConfigError, match="got 1 unexpected: extra"):
            rendered(directory)
    assert kept(cache) == []


def test_processes_that_start_at_once_agree_and_one_folds(cache, checkpoint, tmp_path):
    directory = checkpoint()
    code = (
        "import sys, time; from pathlib import Path; import torch; from genray.views.generators import fold_cache;"
        "from genray.views.generators.biggan import load_biggan;"
        "fold = fold_cache.fold; count = [];"
        "fold_cache.fold = lambda *args: (count.append(1), time.sleep(1), fold(*args))[2];"
        f"start = Path({str(tmp_path / 'start')!r});"
        "print('ready', flush=True);\nwhile not start.exists(): time.sleep(.005)\n"
        f"made = load_biggan(Path({str(directory)!r}), 1.0, 'cpu');"
        "images = made(torch.linspace(-2, 2, 64).view(4, 16), torch.arange(4));"
        "print(len(count), int(images.long().sum()), images.long().flatten()[::977].tolist())"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    told = [process.communicate(timeout=120)[0].strip().partition(" ") for process in started]
    assert all(process.returncode == 0 for process in started)
    assert sorted(count for count, _, _ in told) == ["0", "0", "1"]
    assert len({images for _, _, images in told}) == 1
    assert len(kept(cache)) == 1


def test_nobody_waits_for_ever(tmp_path):
    began = time.monotonic()
    with checkpoints.file_lock(tmp_path / "lock", 10), checkpoints.file_lock(tmp_path / "lock", 0.2):
        pass
    assert 0.2 <= time.monotonic() - began < 5


def test_of_several_processes_one_downloads(cache, checkpoint, monkeypatch):
    """The lock is held while it does."""
    from genray.config.generator import BigGANGenerator

    name, directory, waited = "biggan-deep-128", checkpoint(legacy=True), []
    held = checkpoints.file_lock

    def resolve(model: str, download: bool) -> Path:
        lock = cache / f"{name}.lock"
        assert lock.exists()
        began = time.monotonic()
        with held(lock, 0.2):
            waited.append(time.monotonic() - began)
        return directory

    monkeypatch.setattr("genray.views.generators.resolve", resolve)
    load(BigGANGenerator(model=name), "cpu")
    fetch(BigGANGenerator(model=name))
    assert len(waited) == 2
    assert min(waited) >= 0.2


def test_a_checkpoint_is_told_by_its_content_not_by_its_place(cache, small, folds, tmp_path):
    config, model = small
    one, other = (write(tmp_path / name, config, model.state_dict()) for name in ("one", "other"))
    assert torch.equal(rendered(one), rendered(other))
    assert len(folds) == 1
