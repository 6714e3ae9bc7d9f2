"""Paths, addresses, digests and atomic writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from genray.config.errors import ConfigError
from genray.config.files import (
    absolute,
    cache_directory,
    is_url,
    join_address,
    require_unchanged,
    sha256_of,
    split_address,
    write_atomically,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("first", "second"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_addresses_keep_their_options() -> None:
    url = "s3://bucket/runs?region=x"
    assert join_address(url, "first") == "s3://bucket/runs/first?region=x"
    assert split_address("s3://bucket/runs/first?region=x") == (url, "first")
    assert split_address(join_address("gs://b/", "r")) == ("gs://b", "r")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://bucket/runs", True), ("runs", False), ("/data/runs", False), ("C:/runs", False), ("", False)],
)
def test_an_address_is_told_from_a_directory(text: str, expected: bool) -> None:
    assert is_url(text) is expected


def test_a_relative_path_starts_from_here_and_a_home_from_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute("file") == str(tmp_path / "file")
    assert absolute("~/file") == str(tmp_path / "home" / "file")
    assert absolute("/file") == "/file"
    assert absolute("") == ""


def test_a_file_is_known_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert sha256_of(str(path)) is None
    assert sha256_of(str(tmp_path)) is None
    path.write_bytes(bytes(3 << 20) + b"end")  # longer than what is read at once
    found = sha256_of(str(path))
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    require_unchanged("generator.path", str(path), found)
    require_unchanged("generator.path", str(path), None)
    path.write_bytes(b"other")
    for expected in (f"got '{path}' with {hashlib.sha256(b'other').hexdigest()}; ", "with None; "):
        with pytest.raises(
            ConfigError, match=rf"^generator\.path must hold what it held when the run began \(SHA-256 {found}\), got "
        ) as error:
            require_unchanged("generator.path", str(path), found)
        assert expected in str(error.value)
        path.unlink(missing_ok=True)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "mine"))
    assert cache_directory("weights") == tmp_path / "mine" / "weights"
    for unset in (lambda: monkeypatch.setenv("GENRAY_CACHE", ""), lambda: monkeypatch.delenv("GENRAY_CACHE")):
        unset()
        assert cache_directory("weights") == tmp_path / ".cache" / "genray" / "weights"
