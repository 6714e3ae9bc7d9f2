"""Files of learned latent views: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from genray.config.errors import ConfigError
from genray.config.view import EMBEDDED_GENERATOR
from genray.views.types import GeneratorSpec
from genray.views.walk_files import NAVIGATOR, WALKS, LearnedViewFile

ABOUT = {"generator": "some", "latent_dim": 3, "ranges": {"zoom": [0.25, 4.0]}}
TENSORS = {"zoom": np.array([1.0, 0.1, -3.0]), "red": np.zeros(3)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    WALKS.write(tmp_path / "walks.safetensors", TENSORS, ABOUT)
    return tmp_path / "walks.safetensors"


def test_what_is_written_is_read(file: Path) -> None:
    found = WALKS.read("view.walks", str(file))
    assert found.about == {"kind": "walks", **ABOUT}
    assert list(found.tensors) == ["red", "zoom"]
    for name, tensor in found.tensors.items():
        assert tensor.dtype == np.float64
        np.testing.assert_array_equal(tensor, TENSORS[name].astype(np.float32))
    assert [path.name for path in file.parent.iterdir()] == ["walks.safetensors"]


def test_equal_content_is_equal_bytes(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    code = f"""
import numpy as np
from pathlib import Path
from genray.views.walk_files import WALKS
WALKS.write(Path({str(again)!r}), {{"red": np.zeros(3), "zoom": np.array([1.0, 0.1, -3.0])}}, {ABOUT!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert again.read_bytes() == file.read_bytes()
    assert WALKS.pinned(str(file)) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())


def test_a_given_digest_is_read_once(file: Path) -> None:
    _, digest = WALKS.pinned(str(file))
    first = WALKS.read("view.walks", str(file), digest)
    file.unlink()
    assert WALKS.read("view.walks", str(file), digest) is first
    with pytest.raises(ConfigError, match="No such file"):
        WALKS.read("view.walks", str(file))


def test_a_file_for_other_latents_is_refused(file: Path) -> None:
    WALKS.read("view.walks", str(file), spec=GeneratorSpec("ours", 8, 3, 0))
    with pytest.raises(ConfigError) as error:
        WALKS.read("view.walks", str(file), spec=GeneratorSpec("ours", 8, 4, 0))
    assert str(error.value) == (
        f"view.walks must be learned for latents of 4 numbers, those of ours, got '{file}' for the 3 of some; "
        "genray steer PRESET --out FILE learns one"
    )


def test_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    rule = re.escape(f"view.walks must be a file that `genray steer` wrote, got '{other}'")
    for content in (b"", b"text", file.read_bytes()[:40], file.read_bytes()[:-4]):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^{rule}, which is not one "):
            WALKS.read("view.walks", str(other))
    save_file({"zoom": np.zeros(3)}, other)
    with pytest.raises(ConfigError, match=f"^{rule}, which is not one "):
        WALKS.read("view.walks", str(other))
    NAVIGATOR.write(other, TENSORS, ABOUT)
    with pytest.raises(ConfigError, match=f"^{rule}, which holds 'navigator'"):
        WALKS.read("view.walks", str(other))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WALKS.write(tmp_path / "nowhere" / "walks.safetensors", TENSORS, ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [WALKS, NAVIGATOR])
def test_the_embedded_generator_comes_with_its_own(kind: LearnedViewFile) -> None:
    found = kind.read("view", EMBEDDED_GENERATOR, spec=GeneratorSpec("digit-scenes", 32, 32, 10))
    assert found.about["generator"] == "digit-scenes"
    assert all(np.isfinite(tensor).all() for tensor in found.tensors.values())
    assert kind.pinned(EMBEDDED_GENERATOR)[0] == EMBEDDED_GENERATOR
    assert kind.command(EMBEDDED_GENERATOR).endswith("--out FILE")
