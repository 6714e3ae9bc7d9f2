"""Every shipped preset loads, says what it is, and fits together, without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from genray.commands.configured import configured
from genray.config.load import presets
from genray.stream.plan import Plan


@pytest.mark.parametrize("name", presets())
def test_a_preset_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "empty"))
    config = configured(name)
    plan = Plan.of(config)
    assert plan.lines(config)
    assert config.name.startswith(f"{name}-20")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_is(name: str) -> None:
    lines = presets()[name].read_text().splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert header[0].removeprefix("# ").endswith(".")
    assert len(header[0]) > 30
    entries = dict(line.lstrip("# ").split(maxsplit=1) for line in header[2:] if line.startswith("#   "))
    assert f"genray train {name}" in entries["command"]
    assert entries["hardware"]
    assert entries["expected"]


def test_the_demo_is_there() -> None:
    assert "demo" in presets()
