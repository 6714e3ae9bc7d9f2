"""The wheel that `make dist` builds, installed without the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

import genray

OUTPUTS = {"build", "dist", "mlruns", "runs"}
"""What commands write next to the package."""


def left_out(directory: str, names: list[str]) -> set[str]:
    """What of the checkout is no source."""
    outputs = OUTPUTS if Path(directory) == ROOT else set()
    return {
        name for name in names if name.startswith(".") or name == "__pycache__" or name.endswith(".egg-info")
    } | outputs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    checkout, out = tmp_path_factory.mktemp("checkout") / "genray", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    [line] = re.findall(r"^dist:.*\n\t\$\(BIN\)/python (.*) --outdir dist \.$", (ROOT / "Makefile").read_text(), re.M)
    command = [sys.executable, *line.split(), "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def packaged(directory: Path) -> set[str]:
    """The files that belong into the package."""
    files = {path.relative_to(ROOT) for path in directory.rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_is_the_package(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names, about = set(zipfile.ZipFile(wheel).namelist()), f"genray-{genray.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == packaged(ROOT / "genray")
    assert {"genray/py.typed", "genray/config/presets/demo.toml", f"{about}licenses/LICENSE"} <= names
    assert any(name.startswith("genray/views/generators/assets/") for name in names)


def test_the_sdist_has_what_the_wheel_needs(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert packaged(ROOT / "genray") | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_installed_wheel_works_anywhere(built: Path, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(name: str, *arguments: str) -> str:
        command = [str(environment / "bin" / name), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    [wheel] = built.glob("*.whl")
    run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    # The dependencies come from this environment. Its own .pth files are not read, so its genray is not found.
    installed = Path(run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (installed / "dependencies.pth").write_text("\n".join(sorted(places)))

    assert Path(run("python", "-c", "import genray; print(genray.__file__)")) == installed / "genray" / "__init__.py"
    assert run("genray", "--version") == f"genray {genray.__version__}"
    assert run("genray", "preview", "demo", "--anchors", "2", "--out", "views.png") == "views.png"
    assert (elsewhere / "views.png").read_bytes().startswith(b"\x89PNG")
