"""The public API: what the README shows runs, and importing it takes no time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import small
from paths import ROOT

import genray
from genray.config.errors import ConfigError
from genray.config.load import notify

README = re.search(r"```python\n(import genray.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_every_public_name_is_there() -> None:
    assert set(genray.__all__) == set(dir(genray))
    for name in genray.__all__:
        assert getattr(genray, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        genray.nothing  # noqa: B018


def test_importing_it_loads_nothing() -> None:
    code = "import genray, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "numpy", "pydantic", "mlflow"} & set(loaded)
    assert "genray" in loaded


def test_a_configuration_is_made_of_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = genray.load_config("demo", name="first", training={"steps": 100, "warmup_steps": 5}, seed=3)
    assert isinstance(config, genray.Config)
    assert (config.name, config.seed, config.training.steps, config.training.log_every) == ("first", 3, 100, 20)
    alone = genray.load_config(name="x", probe={"data": "images"}, generator={"kind": "custom", "target": "fakes:Fake"})
    assert alone.probe.data == str(tmp_path / "images")  # as if it came from a file
    assert alone.storage_path == str(tmp_path / "runs")
    (tmp_path / "it.toml").write_text("name = 'from-toml'")
    assert genray.load_config(tmp_path / "it.toml").name == "from-toml"


def test_former_names_are_accepted_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for source in (("demo",), ()):
        notify.cache_clear()  # a line is printed once in a process
        for _ in range(2):
            config = genray.load_config(*source, name="x", generators={"mode": "inline", "num": 2})
            assert (config.render_on, config.pool.num) == ("learners", 2)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "genray: generators.mode is now called render_on; for 'inline' say 'learners'"
        assert len(lines) == 2


def test_a_configuration_made_by_hand_is_checked(tmp_path: Path) -> None:
    config = small(storage_path=str(tmp_path))
    wrong = genray.Config(**{**vars(config), "name": "a/b"})
    for command in (genray.train, genray.preview):
        with pytest.raises(ConfigError, match="name must be a single directory name, got 'a/b'"):
            command(wrong)
    with pytest.raises(ConfigError, match="name must be a single directory name"):
        genray.generate(wrong, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert README is not None
    code = re.sub(
        r"training=\{.*?\}", 'training={"steps": 8, "warmup_steps": 2}, tracking={"mlflow": False}', README[1]
    )
    assert "genray.train(" in code
    values = {"pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}
    exec(code, values)
    assert values["report"]["steps"] == 8
