"""One script installs genray: for `make`, for the image and for the nodes of `ray up`; and the image is well made."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([\w.-]+)==([^ \\]+)", LOCK, re.M))
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
STEPS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    if line and not line.startswith("#")
]


def steps(kind: str) -> list[str]:
    return [rest for instruction, rest in STEPS if instruction == kind]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script with its locks, an environment that exists, and a `uv` that writes down what it is asked."""
    for name in ("install.sh", "requirements.lock", "requirements-uv.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin/uv"
    uv.write_text('#!/bin/sh\necho "$@" >>"$ASKED"\n')
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def installed(checkout: Path, *arguments: str, **environment: str) -> list[str]:
    asked = checkout / "asked"
    asked.write_text("")
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "ASKED": str(asked), "PYTHON": sys.executable, **environment}
    command = [str(checkout / "install.sh"), *arguments]
    subprocess.run(command, env=settings, check=True, cwd="/", capture_output=True)
    return asked.read_text().splitlines()


HOW = "--quiet --python .venv/bin/python"
ITSELF = f"pip install {HOW} --no-deps --no-build-isolation --editable ."


def test_the_locked_versions_are_installed_and_checked_by_their_hashes(checkout: Path) -> None:
    assert installed(checkout) == [
        f"pip sync {HOW} --require-hashes --compile-bytecode requirements.lock",
        ITSELF,
    ]
    more = installed(checkout, ".venv", "cluster/a.lock", "cluster/b.lock")
    assert more[1:3] == [f"pip install {HOW} --require-hashes -r cluster/{name}.lock" for name in "ab"]
    assert more[3] == ITSELF


def test_for_cpus_alone_the_same_versions_come_without_cuda(checkout: Path) -> None:
    torch = [f"{name}=={PINNED[name]}" for name in ("torch", "torchvision")]
    assert installed(checkout, DEVICE="cpu") == [
        f"pip sync {HOW} --require-hashes --compile-bytecode .venv/requirements-cpu.lock",
        f"pip install {HOW} --no-deps --torch-backend cpu {' '.join(torch)}",
        ITSELF,
    ]
    left = dict(re.findall(r"^([\w.-]+)==([^ \\]+)", (checkout / ".venv/requirements-cpu.lock").read_text(), re.M))
    gone = PINNED.keys() - left.keys()
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= gone
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in gone)
    assert left.items() <= PINNED.items()
    hashes = LOCK.count("--hash=") - (checkout / ".venv/requirements-cpu.lock").read_text().count("--hash=")
    assert hashes > len(gone)


def test_an_old_python_is_refused_with_the_remedy(checkout: Path) -> None:
    old = checkout / "bin/old"
    run_as_old = "import sys; sys.version_info = (3, 10); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{run_as_old}' \"$2\"\n")
    old.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as error:
        installed(checkout, PYTHON=str(old))
    assert error.value.stderr.decode() == "genray needs Python 3.11 or later: PYTHON=python3.12 …\n"
    assert (checkout / "asked").read_text() == ""


def test_make_and_the_image_install_by_the_script() -> None:
    rule = (ROOT / "Makefile").read_text().partition(".venv/.ready: ")[2].partition("\n\n")[0]
    assert rule.splitlines()[0].startswith("install.sh requirements.lock ")
    assert "./install.sh .venv" in rule
    assert "pip" not in rule
    [other, install] = steps("RUN")
    assert "/opt/genray/install.sh .venv $LOCKS" in install
    assert "pip install" not in other + install


def test_the_locks_of_clusters_agree_with_that_of_the_package() -> None:
    for lock in (ROOT / "cluster").glob("*.lock"):
        text = lock.read_text()
        found = dict(re.findall(r"^([\w.-]+)==([^ \\]+)", text, re.M))
        assert {name: version for name, version in found.items() if PINNED.get(name, version) != version} == {}
        assert text.count("--hash=") >= len(found)


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint is installed on Linux alone")
def test_the_image_is_linted(tmp_path: Path) -> None:
    def lint(file: Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found = lint(ROOT / "cluster" / "Dockerfile")
    assert found.returncode == 0, found.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /tmp && sudo pip install ray\n")
    assert {"DL3003", "DL3004", "DL3006"} <= set(re.findall(r"DL\d+", lint(wrong).stdout))


def test_the_image_is_pinned_and_not_of_root() -> None:
    [base] = steps("FROM")
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base)
    assert steps("USER") == ["1000"]
    assert [kind for kind, _ in STEPS].index("USER") > [kind for kind, _ in STEPS].index("RUN")
    assert not steps("ADD")
    assert not steps("VOLUME")
    assert "--uid 1000" in steps("RUN")[0]
    [minimum] = re.findall(r"python:(\d+)\.(\d+)", base)
    assert tuple(map(int, minimum)) >= (3, 11)


def test_the_image_holds_no_secret_and_asks_for_the_token() -> None:
    [environment] = steps("ENV")
    assert "RAY_AUTH_MODE=token" in environment
    assert not re.search(r"(?i)(password|secret|_key|auth_token)", " ".join(rest for _, rest in STEPS))


def test_the_image_gets_what_the_script_needs_and_nothing_else() -> None:
    sources = {source for step in steps("COPY") for source in step.split()[:-1]}
    ignored = (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert all(list(ROOT.glob(source)) for source in sources)
    needed = set(re.findall(r"[\w-]+\.lock|pyproject\.toml", (ROOT / "install.sh").read_text())) - {
        "requirements-cpu.lock"
    }
    assert needed | {"install.sh", "pyproject.toml", "README.md", "genray"} <= sources
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"] in sources


def test_every_tag_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = re.findall(r"registry\.example\.com/genray:([\w.-]+)", DOCKERFILE)
    assert tags == [version, f"{version}-cpu", f"{version}-mlflow"]
