"""Fields that had another name in earlier versions: every way to give them still works, and says the current name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genray.config import renamed
from genray.config.errors import ConfigError
from genray.config.load import build, load, notify
from genray.config.run import Config

TOML = """
[generators]
mode = "inline"
num = [2, 4]
num_gpus = 0
"""


@pytest.fixture
def former(tmp_path: Path) -> str:
    """A file of an earlier version."""
    path = tmp_path / "former.toml"
    path.write_text(TOML)
    return str(path)


def loaded(source: str, line: str = "", chosen: dict[str, Any] | None = None) -> tuple[Config, list[str]]:
    """What is loaded, and what is said on the way."""
    said: list[str] = []
    return load(source, line.split(), chosen, say=said.append), said


def told(**values: Any) -> str:
    with pytest.raises(ConfigError) as error:
        build({"name": "x", **values})
    assert "\n" not in str(error.value)
    return str(error.value)


def placed(config: Config) -> tuple[Any, ...]:
    return config.render_on, config.pool.num, config.pool.num_gpus


def test_a_file_is_read_with_a_line_for_each_former_name(former: str) -> None:
    config, said = loaded(former)
    assert placed(config) == ("learners", (2, 4), 0)
    assert said == [
        "genray: generators.mode is now called render_on; for 'inline' say 'learners'",
        "genray: generators is now called pool",
    ]


def test_an_override_is_read_with_a_line(former: str, tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text("[pool]\nnum = 5\n")
    config, said = loaded(str(tmp_path / "plain.toml"), "--generators.mode inline --generators.num-gpus 0.5")
    assert placed(config) == ("learners", 5, 0.5)
    assert said == [
        "genray: generators.mode is now called render_on; for 'inline' say 'learners'",
        "genray: generators.num_gpus is now called pool.num_gpus",
    ]
    config, said = loaded(former, "--generators.num 3")  # on top of a file that has former names too
    assert placed(config) == ("learners", 3, 0)
    assert said[-1] == "genray: generators.num is now called pool.num"
    config, said = loaded(str(tmp_path / "plain.toml"), "--generators {mode='inline',num=2}")
    assert placed(config) == ("learners", 2, 1)


def test_current_names_are_not_told_of(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text("render_on = 'learners'\n[pool]\nnum = 5\n")
    _, said = loaded(str(tmp_path / "plain.toml"), "--pool.num_gpus 0", {"pool.num": 2})
    assert said == []
    _, said = loaded(str(tmp_path / "plain.toml"), "", {"generators.num": 2})
    assert said == ["genray: generators.num is now called pool.num"]


def test_lines_go_to_stderr_where_nobody_takes_them(former: str, capsys: pytest.CaptureFixture[str]) -> None:
    notify.cache_clear()
    for _ in range(2):  # each is printed once in a process
        load(former)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == loaded(former)[1]


@pytest.mark.parametrize(("was", "now"), [("pool", "pool"), ("inline", "learners")])
def test_a_run_of_an_earlier_version_is_read(was: str, now: str, tmp_path: Path) -> None:
    values = Config(name="first", storage_path=str(tmp_path)).to_dict()
    generators = {"mode": was, **values.pop("pool"), "num": 3, "look_ahead_mib": 2048}
    del values["render_on"]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps({**values, "generators": generators}))
    for source in (tmp_path / "first", tmp_path / "first" / "config.json"):
        config, _ = loaded(str(source))
        assert (config.render_on, config.pool.num, config.pool.look_ahead_mib) == (now, 3, 2048)
        assert config.to_dict().keys() == Config(name="x").to_dict().keys()
    assert build({**values, "generators": generators}) == config


def test_fields_that_go_on_top_may_have_former_names(former: str) -> None:
    config, _ = loaded(former, "--generators.num 3", {"generators.num": 1, "generators.mode": "pool"})
    assert placed(config) == ("pool", 1, 0)
    config, _ = loaded(former, "--generators.num 3", {"pool.num": 1, "render_on": "pool"})
    assert placed(config) == ("pool", 1, 0)


def test_build_takes_former_names_and_leaves_what_it_is_given_as_it_is() -> None:
    values = {"name": "x", "generators": {"mode": "inline", "num": 2}, "pool": {"num_gpus": 0}}
    before = json.dumps(values)
    assert placed(build(values)) == ("learners", 2, 0)
    assert json.dumps(values) == before
    assert build({"name": "x", "generators": {}}) == build({"name": "x"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"generators": {"num": 2}, "pool": {"num": 2}},
            "generators.num must not be given together with pool.num, its current name",
        ),
        (
            {"generators": {"mode": "inline"}, "render_on": "learners"},
            "generators.mode must not be given together with render_on, its current name",
        ),
    ],
)
def test_a_field_has_one_of_its_names(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert told(**values) == message
    (tmp_path / "config.json").write_text(json.dumps({"name": "x", **values}))
    with pytest.raises(ConfigError) as error:
        loaded(str(tmp_path))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--generators.num 2 --pool.num 2",
            "generators.num must not be given together with pool.num, its current name",
        ),
        (
            "--render_on pool --generators.mode pool",
            "generators.mode must not be given together with render_on, its current name",
        ),
    ],
)
def test_an_override_has_one_of_its_names(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded("demo", line)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generators": 3}, "pool must be a section of fields, got 3"),
        ({"generators": None}, "pool must be a section of fields, got None"),
        ({"generators": [1]}, "pool must be a section of fields, got [1]"),
        ({"generators": {"num": 2}, "pool": 3}, "pool must be a section of fields, got 3"),
        ({"generators": 3, "pool": {"num": 2}}, "pool must be a section of fields, got 3"),
        ({"generators": {"num": 0}}, "pool.num must be greater than 0, got 0"),
        ({"generators": {"nmu": 1}}, "pool.nmu must be a field of pool; did you mean 'num'?"),
        ({"generators": {"mode": "inlin"}}, "render_on must be one of pool, learners, got 'inlin'"),
        ({"generators": {"mode": 3}}, "render_on must be one of pool, learners, got 3"),
        ({"generators": {"mode": ["inline"]}}, "render_on must be one of pool, learners, got ['inline']"),
    ],
)
def test_what_is_wrong_is_told_by_the_current_name(values: dict[str, Any], message: str) -> None:
    assert told(**values) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--generators 3", "pool must be a section of fields, got 3"),
        ("--generators.num.x 3", "pool.num.x must name a field, but num holds the value [2, 4]"),
        ("--generators.mode 3", "render_on must be one of pool, learners, got 3"),
        ("--render_on inline", "render_on must be one of pool, learners, got 'inline'"),
    ],
)
def test_what_is_wrong_in_an_override_is_told_by_the_current_name(former: str, line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(former, line)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("generators", "pool"),
        ("generators.num", "pool.num"),
        ("generators.mode", "render_on"),
        ("generators.model", "pool.model"),
        ("generator.mode", "generator.mode"),
        ("pool.num", "pool.num"),
        ("seed", "seed"),
    ],
)
def test_a_path_is_called_by_the_first_name_that_matches(old: str, now: str) -> None:
    assert renamed.current_path(old) == now
