"""Trains visual representations without a dataset: a frozen image generator renders the views.

>>> import genray
>>> config = genray.load_config("demo", training={"steps": 200})
>>> report = genray.train(config)
>>> report["probes"]["trained"]
{'knn': 0.8601, 'linear': 0.9126}
>>> encoder = genray.load_encoder(report["directory"])
>>> encoder.features(pixels).shape  # uint8 [n, 3, 32, 32]
torch.Size([n, 128])

`Config` is the configuration of a run as a frozen value; `load_config` makes one of a preset, a TOML file or a run's
directory, and of keywords. Names are imported when they are first used, so that `import genray` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genray.commands.configured import load_config
    from genray.commands.evaluate import evaluate
    from genray.commands.generate import generate
    from genray.commands.preview import preview
    from genray.commands.train import train
    from genray.config.run import Config
    from genray.learner.load import load_encoder

__all__ = ["Config", "__version__", "evaluate", "generate", "load_config", "load_encoder", "preview", "train"]

_HOMES = {
    "Config": "genray.config.run",
    "evaluate": "genray.commands.evaluate",
    "generate": "genray.commands.generate",
    "load_config": "genray.commands.configured",
    "load_encoder": "genray.learner.load",
    "preview": "genray.commands.preview",
    "train": "genray.commands.train",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("genray")
    if name not in _HOMES:
        raise AttributeError(f"module 'genray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
