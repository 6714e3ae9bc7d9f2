"""docs/generators.md and docs/sources.md: examples are configurations, and modules render."""

from __future__ import annotations

import pickle
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from torch import Tensor, nn

from genray.config import load
from genray.config.errors import ConfigError
from genray.config.fields import hints, kinds_of, members
from genray.config.generator import CustomGenerator
from genray.config.run import Config
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.views import pin
from genray.views.sources import describe

GENERATORS, SOURCES = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("generators", "sources"))


def example(name: str) -> str:
    """The code block that begins with this name."""
    [found] = re.findall(rf"```\w+\n(# {re.escape(name)}\n.*?)```", GENERATORS + SOURCES, flags=re.DOTALL)
    return str(found)


class Net(nn.Module):
    """Stands in for a pickled StyleGAN2: one colour for each image, from its latent and class."""

    def __init__(self, image_size: int = 16, z_dim: int = 6, c_dim: int = 0):
        super().__init__()
        self.img_resolution, self.z_dim, self.c_dim = image_size, z_dim, c_dim
        self.colour = nn.Linear(z_dim + c_dim, 3)

    def forward(self, z: Tensor, c: Tensor | None, truncation_psi: float = 1, noise_mode: str = "random") -> Tensor:
        assert noise_mode == "const"
        inputs = z if c is None else torch.cat([z, c], 1)
        colours = truncation_psi * self.colour(inputs).tanh()[:, :, None, None]
        side = self.img_resolution
        return (colours * torch.linspace(0, 1, side, device=z.device)).expand(-1, -1, side, side)


class Generator(Net):
    """Stands in for the code of a BigBiGAN."""

    def __init__(self) -> None:
        super().__init__(128, 120)

    def forward(self, z: Tensor, *rest: Any) -> Tensor:
        return super().forward(z, None, noise_mode="const")


def shown(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **generator: Any) -> dict[str, np.ndarray]:
    """What a run shows with the module and the settings of this name on the page."""
    (tmp_path / f"{name}.py").write_text(example(f"{name}.py"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    values = tomllib.loads(example(f"{name}.toml"))
    lines = [line for line in example(f"{name}.py").splitlines() if line and not line.startswith("#")]
    assert len(lines) == 10  # as many as are promised
    values["generator"] |= {"micro_batch": 4, **generator}
    return Renderer(load.build({"name": name, **values}), "cpu").block_at(np.arange(4))


@pytest.mark.parametrize("classes", [0, 5])
def test_a_stylegan2_of_the_user_renders(classes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"G": None, "G_ema": Net(c_dim=classes)}))
    sizes = {"image_size": 16, "latent_dim": 6, "num_classes": classes, "options": {"path": str(path)}}
    found = shown("stylegan2", monkeypatch, tmp_path, **sizes)
    assert found["views"].shape == (4, 2, 3, 16, 16)
    assert len(np.unique(found["views"].reshape(8, -1), axis=0)) == 8
    with pytest.raises(ConfigError, match=r"^generator\.latent_dim must be that of stylegan2:StyleGAN2, which has 6"):
        shown("stylegan2", monkeypatch, tmp_path, **{**sizes, "latent_dim": 7})


def test_a_bigbigan_of_the_user_renders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = ModuleType("my_gans")
    package.Generator = Generator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_gans", package)
    torch.save(Generator().state_dict(), tmp_path / "weights.pt")
    found = shown("bigbigan", monkeypatch, tmp_path, options={"weights": str(tmp_path / "weights.pt")})
    assert found["views"].shape == (4, 2, 3, 128, 128)
    assert found["latent"].shape == (4, 2, 120)


def test_every_settings_example_is_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "digits.py").write_text(example("digits.py"))
    monkeypatch.chdir(tmp_path)
    exec(compile(example("digits.py"), "digits.py", "exec"), {})
    (tmp_path / "digits").rename(tmp_path / "photos")
    names = re.findall(r"```toml\n# (\S+)\n", GENERATORS + SOURCES)
    assert names == ["waves.toml", "stylegan2.toml", "bigbigan.toml", "prompts.toml", "photos.toml", "mix.toml"]
    configs = {name: pin.pinned(load.build({"name": "x", **tomllib.loads(example(name))})) for name in names}
    assert all(Plan.of(config).lines(config) for config in configs.values())
    assert isinstance(configs["stylegan2.toml"].generator, CustomGenerator)
    assert describe(configs["prompts.toml"]).num_classes == 3
    assert describe(configs["photos.toml"]).population == 1000
    assert describe(configs["mix.toml"]).num_classes == 10  # the directories are called by the digits
    found = Renderer(configs["mix.toml"], "cpu").block_at(np.arange(8))
    assert (found["anchor"] < 0).sum() == 2


@pytest.mark.parametrize(("section", "page"), [("source", SOURCES), ("generator", GENERATORS)])
def test_every_kind_is_explained(section: str, page: str) -> None:
    kinds = {kind for member in members(hints(Config)[section]) for kind in kinds_of(member)}
    assert set(re.findall(r"^\| `(\w+)`", page.partition("\n## ")[0], flags=re.MULTILINE)) == kinds
