"""Files of JSON lines: what a killed writer leaves spoils nothing else."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from genray.runs.jsonl import Follower, append, flush, last, read

WHOLE, CUT = b'{"step": 1}\n{"step": 2}\n', b'{"step": 3'


def test_a_line_that_was_cut_short_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + b"[1]\n\xff\n" + CUT)
    assert read(path) == [{"step": 1}, {"step": 2}]
    assert last(path) == {"step": 2}


def test_there_may_be_no_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (read(path), last(path), Follower(path).new()) == ([], {}, [])
    for content in (b"", CUT):
        path.write_bytes(content)
        assert (read(path), last(path), Follower(path).new()) == ([], {}, [])


def test_what_is_added_after_a_line_that_was_cut_short_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1}, {"step": 2})
    assert path.read_bytes() == WHOLE
    path.write_bytes(WHOLE + CUT)
    append(path, {"step": 4})
    assert read(path) == [{"step": 1}, {"step": 2}, {"step": 4}]


def test_a_record_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1}, {"step": 2})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(WHOLE) + len(CUT), limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device.*metrics"):
            append(path, {"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == WHOLE + CUT
    assert read(path) == [{"step": 1}, {"step": 2}]


def test_who_follows_sees_each_record_once_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.new() == []
    path.write_bytes(WHOLE + CUT)
    assert follower.new() == [{"step": 1}, {"step": 2}]
    assert follower.new() == []
    path.write_bytes(WHOLE + CUT + b"}\n")
    assert follower.new() == [{"step": 3}]
    assert Follower(path, start=len(WHOLE)).new() == [{"step": 3}]


def test_what_is_flushed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    append(tmp_path / "a", {"x": 1})
    flush(tmp_path / "a", tmp_path / "missing")
    assert asked == [str(tmp_path / "a")]
