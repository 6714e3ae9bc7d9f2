"""The command as a user runs it: quick where it can be, and one line instead of a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import small
from PIL import Image

from genray.cli import main
from genray.config import fields, load
from genray.runs.directory import RunDirectory

GENRAY = Path(sys.executable).with_name("genray")
OFFLINE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command in this directory, without network or weights."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "GENRAY_CACHE": str(directory / "cache"), **OFFLINE}
    return subprocess.run([GENRAY, *arguments], cwd=directory, env=env, capture_output=True, text=True, timeout=120)


def refused(directory: Path, *arguments: str) -> str:
    """What the command says of a mistake: one line, exit code 2, and nothing left behind."""
    done = run(directory, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("genray: ")
    return lines[0].removeprefix("genray: ")


def test_help_answers_at_once(tmp_path: Path) -> None:
    code = ["-X", "importtime", "-m", "genray.cli", "--help"]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True, cwd=tmp_path)
    commands = "train sweep bench evaluate compare export generate preview steer navigate list presets fields"
    for command in commands.split():
        assert command in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in imported  # the list is what it should be
    assert not imported & {"torch", "ray", "mlflow", "timm", "sklearn", "scipy", "pandas", "pyarrow"}


def test_presets_are_listed(tmp_path: Path) -> None:
    done = run(tmp_path, "presets")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(load.presets())


def test_fields_are_listed_as_far_as_someone_reads(tmp_path: Path) -> None:
    done = run(tmp_path, "fields")
    assert done.returncode == 0
    assert done.stdout.strip() == fields.reference().strip()
    with subprocess.Popen([GENRAY, "fields"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as piped:
        assert piped.stdout is not None
        piped.stdout.close()  # as `head` does
        _, errors = piped.communicate()
    assert errors == b""


def test_runs_are_listed(tmp_path: Path) -> None:
    for name, record in {"first": '{"step": 20, "loss": 3.25}\n', "second": ""}.items():
        config = load.load("demo", ["--name", name, "--storage_path", str(tmp_path / "runs")])
        directory = RunDirectory.of(config)
        directory.claim(config)
        directory.metrics.write_text(record)
    RunDirectory(tmp_path / "runs" / "first").report.write_text('{"probes": {"trained": {"knn": 0.875}}}')
    done = run(tmp_path, "list")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    steps = config.training.steps
    assert rows == [
        ["run", "state", "step", "loss", "kNN"],
        ["first", "finished", f"20/{steps}", "3.250", "87.5%"],
        ["second", "started", f"0/{steps}"],
    ]


def test_a_directory_without_runs_is_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = run(tmp_path, "list", "runs")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert refused(tmp_path, "list", "elsewhere") == "the directory must exist, got 'elsewhere'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train demmo", r"the preset must be one of .*demo.*, or a TOML file, got 'demmo'; did you mean 'demo'\?"),
        ("train bad.toml", "bad.toml must be readable TOML: .*"),
        ("train demo --view.sdt 1", r"view.sdt must be a field of view; did you mean 'std'\?"),
        ("train demo --dry-runn", "--dry-runn must be followed by a value"),
        ("train demo --pool.num 0", "pool.num must be greater than 0, got 0"),
        (
            "train demo --learners.num-workers 3",
            r"stream.batch_size must be a multiple of learners.num_workers \(3\), got \d+; the nearest is \d+",
        ),
        (
            "train demo --stream.batch_size 8192",
            r"pool.look_ahead_mib must hold two tickets of every learner \(.*\), got 64; raise it to \d+ or "
            "lower stream.ticket_batches",
        ),
        (
            "train demo --storage_path file",
            r"storage_path must be a directory that can be written, got '.*/file' \(Not a directory\)",
        ),
        (
            "train demo --generator.model empty",
            r"generator.model must be a directory with config.json and .*, got '.*/empty'; put them in .*/empty",
        ),
        ("presets --seed 3", "this command takes no '--seed'"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "bad.toml").write_text("[view")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    said = refused(tmp_path, *arguments.split())
    assert re.fullmatch(message, said), said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", ["", "trian demo", "preview demo --anchors few"])
def test_a_wrong_command_is_refused_without_a_traceback(arguments: str, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments.split())
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_preview_draws_the_demo(tmp_path: Path) -> None:
    done = run(tmp_path, "preview", "demo", "--out", "deep/x.png", "--anchors", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "deep/x.png\n", "")
    with Image.open(tmp_path / "deep" / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > 3 * 64
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "deep"}  # the first are weights, as they are kept


@pytest.fixture
def fake_run(tmp_path: Path) -> Path:
    """The directory of a run with a quick generator, for commands that are tried in this process."""
    config = small(storage_path=str(tmp_path), model={"backbone": "resnet18"})
    run = RunDirectory.of(config)
    run.claim(config)
    return run.path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "{file}/x.png"], 2, r"--out must be a file that can be written, got '.*/x.png' \(.+\)"),
        (["--anchors", "0"], 2, "--anchors must be at least 1, got 0"),
        (["--generator.options.bad", "constant"], 1, "1 of 16 images are of one constant colour"),
        (["--generator.options.bad", '"nan"'], 1, "1 of 16 images have pixels that are not finite, image 15 first"),
        (
            ["--model.backbone", "resnet81"],
            2,
            r"model.backbone must be a timm model, got 'resnet81'; did you mean .*\?",
        ),
        (["--generator.options.colour", "1"], 2, "generator.options must be arguments of fakes:Fake: .*'colour'"),
    ],
)
def test_preview_tells_what_went_wrong(
    fake_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    out = ["--out", str(fake_run / "x.png")]
    filled = [argument.format(file=fake_run / "config.json") for argument in arguments]
    with pytest.raises(SystemExit) as exit:
        main.main(["preview", str(fake_run), *out, *filled])
    assert exit.value.code == code
    said = capsys.readouterr().err
    assert re.fullmatch(f"genray: {message}\n", said), said
    assert not list(fake_run.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("steer demo --zoom 1", "--zoom must be more than 1, got 1"),
        ("steer demo --walks zoom up", "--walks must be of zoom, shift_x, .*, got 'up'"),
        ("steer demo --out walks", "--out must be a .safetensors file in a directory that exists, got 'walks'"),
        ("steer demo --generatr.truncation 1", "generatr must be a field of the configuration; did you mean .*"),
        ("navigate demo --batch 1", "--batch must be at least 2, .*, got 1"),
        ("preview demo --view.kind steered --view.walks w", "view.walks must be a file that `genray steer` wrote, .*"),
    ],
)
def test_a_mistake_in_what_is_learned_is_told_in_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    said = refused(tmp_path, *arguments.split())
    assert re.fullmatch(message, said), said
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"GENRAY_CACHE": str(tmp_path / "cache"), **OFFLINE}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies of its first use
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    out = ["--out", str(tmp_path / "x.png"), "--pool.look_ahead_mib", "512"]
    with pytest.raises(SystemExit) as exit:
        main.main(["preview", "demo", *out, "--generator.model", "biggan-deep-128"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        "genray: generator.model must be in the cache or be downloaded, got 'biggan-deep-128', and the download failed "
        rf"\(.+\); put config.json and pytorch_model.bin at {tmp_path}/cache/biggan-deep-128\n",
        said,
    ), said


def test_backbones_are_compared_on_labelled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    few = ["--probe", "knn", "few", "--shots", "1", "5", "--draws", "2"]
    main.main(["evaluate", "pixels", "--data", "digit-scenes", *few, "--out", str(out)])
    shown, told = capsys.readouterr()
    found = json.loads(out.read_text())
    metrics = found["backbones"]["pixels"]
    assert list(metrics) == ["knn", "few.1", "few.1.std", "few.5", "few.5.std"]
    assert 0.1 < metrics["few.1"] < metrics["few.5"] < metrics["knn"] < 0.5
    first, *rest = shown.splitlines()
    assert first == "digit-scenes: 4,000 training images, 2,388 test images, 10 classes"
    lines = [line.split() for line in rest]
    assert lines[0] == ["backbone", "knn", "few.1", "few.5"]
    assert lines[1][:2] == ["pixels", f"{metrics['knn']:.1%}"]
    assert told == "pixels: knn on digit-scenes\npixels: few on digit-scenes\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "genray evaluate must be given a run's directory or another backbone"),
        ("pixels", "--data must name labelled images to judge on, got none; it may be digit-scenes, .*"),
        ("pixels --data digit-scene", "--data must be .*, got 'digit-scene'; did you mean 'digit-scenes'\\?"),
        ("pixels --data digit-scenes --probe svm", "--probe must be of knn, .*, got 'svm' on digit-scenes"),
        ("pixels --data digit-scenes --neighbors 0", "--neighbors must be more than 0, got 0"),
        ("pixels --data digit-scenes --size -1", "--size must be more than 0, got -1"),
        (
            "pixels --data digit-scenes --weights x.pth",
            "--weights must go with one timm:MODEL or torchvision:MODEL, got 0 of them",
        ),
        ("pixels --data digit-scenes --shots 0", r"--shots must be numbers of at least 1, got \[0\]"),
        ("pixels --data digit-scenes --out no/such/file", "--out must be a file in a directory that exists, got .*"),
        ("tim:resnet18 --data digit-scenes", "a backbone must be .*, got 'tim:resnet18'; did you mean 'timm:'\\?"),
        ("runs/frist", "a backbone must be .*, got 'runs/frist', which does not exist"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main.main(["evaluate", *arguments.split()])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"genray: {message}\n", said), said


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_run_must_exist_and_have_a_checkpoint(
    command: str, fake_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for directory, message in {
        fake_run.parent: "the run must be a directory with config.json, got '.*'",
        fake_run: "the run must have a checkpoint, got '.*', which has none yet",
    }.items():
        with pytest.raises(SystemExit) as exit:
            main.main([command, str(directory)])
        assert exit.value.code == 2
        assert re.fullmatch(f"genray: {message}\n", capsys.readouterr().err)
