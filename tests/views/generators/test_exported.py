"""Generators as torch.export programs: the same pixels as the live one, and clear words for what is no generator."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from torch import Tensor, nn

from genray.config.errors import ConfigError
from genray.config.generator import BigGANGenerator, ExportedGenerator
from genray.config.load import build
from genray.stream.renderer import Renderer
from genray.views.generators import describe, load
from genray.views.generators.exported import export
from genray.views.generators.programs import Program
from genray.views.pin import pinned
from genray.views.types import BadImages, GeneratorSpec

JOB = ROOT / "jobs" / "export_generator.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_generator", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(job: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded generator, as the job exports it."""
    path = tmp_path_factory.mktemp("exported") / "digits.pt2"
    job.main(["--out", str(path)])
    return path


class Small(nn.Module):
    """Eight pixels a side of four numbers; `how` spoils or changes what comes out. A generator of one's own."""

    image_size, latent_dim, num_classes = 8, 4, 0

    def __init__(self, how: str = "", num_classes: int = 0):
        super().__init__()
        self.num_classes, self.how = num_classes, how
        self.paint = nn.Linear(4, 3 * 8 * 8, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.paint.weight.data = torch.rand(3 * 8 * 8, 4, generator=generator) - 0.5

    def forward(self, z: Tensor, label: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
        images = self.paint(z).tanh().unflatten(1, (3, 8, 8))
        if label is not None:
            images = images * (1 + label[:, None, None, None]) / 5
        match self.how:
            case "bytes":
                return (127.5 * (images + 1)).to(torch.uint8)
            case "small":
                return images[..., 1:]
            case "nan":
                return images / torch.relu(z[:, :1, None, None])
        return images


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """Writes `Small` as a program that says nothing of itself, and returns the settings for it."""

    def written(how: str = "", num_classes: int = 0, said: bool = False, batch: int | None = None) -> ExportedGenerator:
        path, module = tmp_path / "small.pt2", Small(how, num_classes)
        if said:
            export(module, path, Program(8, 4, num_classes, batch))
        else:
            batched = None if batch else {0: torch.export.Dim("n", min=1)}
            inputs = (torch.zeros(batch or 3, 4), torch.zeros(batch or 3, dtype=torch.int64))[: 2 if num_classes else 1]
            program = torch.export.export(module.eval(), inputs, dynamic_shapes=[batched] * len(inputs))
            torch.export.save(program, path)
        return ExportedGenerator(path=str(path), micro_batch=batch or 64)

    return written


def sized(config: ExportedGenerator, **changes: Any) -> ExportedGenerator:
    return ExportedGenerator(
        **{"path": config.path, "image_size": 8, "latent_dim": 4, "num_classes": 0, "micro_batch": config.micro_batch}
        | changes
    )


@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_the_exported_generator_renders_what_the_live_one_does(digits: Path, micro_batch: int) -> None:
    def shown(**generator: Any) -> dict[str, np.ndarray]:
        config = build({"name": "x", "generator": {"micro_batch": micro_batch, **generator}})
        return Renderer(config, "cpu").block_at(np.arange(11))

    live, exported = shown(), shown(kind="exported", path=str(digits))
    difference = np.abs(live["views"].astype(int) - exported["views"])
    assert live["views"].std() > 20
    assert difference.max() <= 1
    for name in ("label", "latent", "anchor", "epoch"):
        np.testing.assert_array_equal(live[name], exported[name])


def test_the_exported_generator_has_the_gradient_of_the_live_one(digits: Path) -> None:
    z = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    labels, slopes = torch.tensor([3, 7]), []
    for config in (ExportedGenerator(path=str(digits)), BigGANGenerator()):
        at = z.clone().requires_grad_()
        load(config, "cpu").differentiable(at, labels).square().sum().backward()
        slopes.append(at.grad)
    assert float(slopes[1].abs().max()) > 0.1
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


def test_the_file_says_its_sizes_without_torch(digits: Path) -> None:
    code = (
        "import sys; from genray.config.run import Config; from genray.views.generators import describe;"
        "from genray.config.generator import ExportedGenerator as E;"
        f"print(describe(E(path={str(digits)!r}))); print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = GeneratorSpec(str(digits), image_size=32, latent_dim=32, num_classes=10)
    assert done.stdout.splitlines() == [str(expected), "[]"]


def test_one_without_classes_from_an_import_path(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    path = tmp_path / "mine.pt2"
    for how, z in (("", torch.randn(5, 4)), ("bytes", torch.randn(1, 4))):
        job.main(["--generator", "mine:Small", "--options", f'{{"how": "{how}"}}', "--out", str(path)])
        images = load(ExportedGenerator(path=str(path)), "cpu")(z, None)
        expected = Small("bytes").eval()(z)
        assert images.dtype == torch.uint8
        assert (images.int() - expected.int()).abs().max() <= 1
        assert images.float().std() > 5


def test_one_with_classes_gets_them(small: Any) -> None:
    config = sized(small(num_classes=5), num_classes=5)
    z, labels = torch.randn(6, 4), torch.arange(6) % 5
    images = load(config, "cpu")(z, labels).int()
    assert (images - (127.5 * (Small(num_classes=5)(z, labels) + 1)).int()).abs().max() <= 1
    assert (images - load(config, "cpu")(z, labels.flip(0)).int()).abs().max() > 10


def test_a_fixed_number_of_images_is_what_a_micro_batch_must_be(small: Any) -> None:
    for said in (True, False):
        config = sized(small(said=said, batch=6))
        assert load(config, "cpu")(torch.randn(6, 4), None).shape == (6, 3, 8, 8)
        for other in (64, "auto"):
            with pytest.raises(ConfigError, match=rf"^generator\.micro_batch must be 6, .*, got {other!r}; or export"):
                load(sized(config, micro_batch=other), "cpu")
    said = small(said=True, batch=6)
    with pytest.raises(ConfigError, match=r"^generator\.micro_batch must be 6"):
        describe(sized(said, micro_batch=5))  # told before anything is loaded


def test_sizes_are_said_by_the_file_or_given(small: Any) -> None:
    config = small()
    with pytest.raises(ConfigError, match=r"^generator\.image_size must be given, because .+ does not state it"):
        describe(config)
    assert describe(sized(config)) == GeneratorSpec(config.path, 8, 4, 0)
    with pytest.raises(ConfigError, match=r"^generator\.path must be a program of latents \[n, 5\] alone, got .*'4'"):
        load(sized(config, latent_dim=5), "cpu")
    with pytest.raises(ConfigError, match=r"of latents \[n, 4\] and classes \[n\], got"):
        load(sized(config, num_classes=3), "cpu")


def test_the_settings_must_not_contradict_the_file(digits: Path, small: Any) -> None:
    for name, value, theirs in (("image_size", 64, 32), ("num_classes", 0, 10), ("truncation", 0.5, 1.0)):
        with pytest.raises(
            ConfigError, match=rf"^generator\.{name} must be that of .*, which has {theirs}, got {value}$"
        ):
            describe(ExportedGenerator(path=str(digits), **{name: value}))  # type: ignore[arg-type]
    config = small(said=True)
    with zipfile.ZipFile(config.path, "a") as archive:
        entry = next(name for name in archive.namelist() if name.endswith("genray.json"))
        assert archive.read(entry) == Program(8, 4, 0).to_json().encode()


@pytest.mark.parametrize(
    ("how", "told"), [("small", r"of shape \[2, 3, 8, 8\], got .* \[2, 3, 8, 7\]"), ("nan", "1 of 2")]
)
def test_what_is_no_image_is_refused(small: Any, how: str, told: str) -> None:
    generator = load(sized(small(how)), "cpu")
    with pytest.raises(BadImages, match=told):
        generator(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]), None)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    for name, content in (("missing", None), ("text", b"no archive")):
        path = tmp_path / f"{name}.pt2"
        if content:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^generator\.path must be a file that torch.export.save wrote, got"):
            describe(ExportedGenerator(path=str(path)))
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/readme", "nothing")
    with pytest.raises(ConfigError, match=r"^generator\.path must be a program that torch .* loads, got"):
        load(ExportedGenerator(path=str(tmp_path / "other.pt2"), image_size=8, latent_dim=4, num_classes=0), "cpu")


def test_a_run_keeps_the_file_that_it_began_with(small: Any) -> None:
    config = build({"name": "x", "generator": {"kind": "exported", "path": small(said=True).path}})
    noted = pinned(config)
    assert isinstance(noted.generator, ExportedGenerator)
    assert len(noted.generator.sha256 or "") == 64
    assert pinned(noted) is noted
    load(noted.generator, "cpu")
    small("bytes", said=True)  # another program of the same name
    with pytest.raises(ConfigError, match=r"^generator\.path must hold what it held when the run began \(SHA-256 "):
        load(noted.generator, "cpu")
