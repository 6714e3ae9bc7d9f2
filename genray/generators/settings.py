"""The settings of each kind of generator, and the rules that they must keep; importing this takes no torch."""

from __future__ import annotations

from dataclasses import field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from genray.settings import ConfigError, settings

if TYPE_CHECKING:
    from genray.config import Config

Positive = Annotated[int, Field(gt=0)]
MICRO_BATCH = 64
"""Images rendered at once where nothing else is said."""
NOISE_VIEWS = ("independent", "none")
"""Kinds of latent views of a generator whose images follow from a class and a noise seed alone."""


class GeneratorSettings:
    """What the settings of every generator can be asked."""

    def check(self, config: Config) -> None:
        """Raise ConfigError where they make no sense by themselves or with the rest of the configuration."""

    def settled(self) -> Self:
        """The same with the files that they name named for good: by absolute paths and digests of the content."""
        return self


@settings
class BigGANGenerator(GeneratorSettings):
    """BigGAN-deep through pytorch-pretrained-biggan: the embedded digit scenes, the published weights or your own."""

    kind: Literal["biggan"] = "biggan"
    model: str = "digit-scenes"
    """`digit-scenes` (embedded), `biggan-deep-128`, `-256`, `-512`, or a directory with config.json and weights."""
    truncation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Scale of the anchors' latents, and the batch-norm statistics that go with it."""
    micro_batch: Positive | Literal["auto"] = MICRO_BATCH
    """Images rendered at once; fixed for the life of a run, so that the pixels are. `auto` measures at the first start
    how many are fastest.
    """
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Arithmetic of weights and activations; what norms do, tanh and rounding stay float32. The others change pixels,
    by how much is measured by `python benchmarks/generator.py`. `tf32` is float32 but for products on a GPU.
    """
    compile: bool = False
    """Compile the network with torch.compile, as one graph and for any truncation; changes single pixels by a grey
    level. The first ticket takes the time for it.
    """
    cuda_graphs: bool = False
    """Launch the network as one CUDA graph, which helps small micro-batches. For generators with a GPU; a preview
    rendered on a CPU does without. May change when a run is resumed.
    """

    def check(self, config: Config) -> None:
        renders = "generators" if config.generators.mode == "pool" else "learners"
        if self.cuda_graphs and not getattr(config, renders).num_gpus:
            raise ConfigError(
                f"generator.cuda_graphs must be false where images are rendered without GPUs ({renders}.num_gpus = 0), "
                f"got true; raise {renders}.num_gpus"
            )

    def settled(self) -> Self:
        return replace(self, model=str(Path(self.model).absolute())) if Path(self.model).is_dir() else self


@settings
class CustomGenerator(GeneratorSettings):
    """A generator of your own: `target` is called with `options` and must return a `genray.generators.Generator`."""

    kind: Literal["custom"] = "custom"
    target: str = ""
    """Import path of the factory, `package.module:factory`."""
    image_size: Positive = 256
    """Pixels of a side."""
    latent_dim: Positive = 512
    """Numbers in a latent."""
    num_classes: Annotated[int, Field(ge=0)] = 0
    """Classes it is conditioned on; 0 for none."""
    truncation: Annotated[float, Field(gt=0)] = 1.0
    """Scale of the anchors' latents."""
    micro_batch: Positive | Literal["auto"] = MICRO_BATCH
    """Images rendered at once; `auto` measures at the first start how many are fastest."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""

    def check(self, config: Config) -> None:
        if self.target.count(":") != 1:
            raise ConfigError(f"generator.target must be `package.module:factory`, got {self.target!r}")


@settings
class ExportedGenerator(GeneratorSettings):
    """A program that torch.export has saved, `z, label -> image`, or `z -> image` without classes."""

    kind: Literal["exported"] = "exported"
    path: str = ""
    """The .pt2 file; `python jobs/export_generator.py` writes one that says its sizes itself."""
    image_size: Positive | None = None
    """Pixels of a side, where the file does not say."""
    latent_dim: Positive | None = None
    """Numbers in a latent, where the file does not say."""
    num_classes: Annotated[int, Field(ge=0)] | None = None
    """Classes it is conditioned on, where the file does not say; 0 for none."""
    truncation: Annotated[float, Field(gt=0)] = 1.0
    """Scale of the anchors' latents."""
    micro_batch: Positive | Literal["auto"] = MICRO_BATCH
    """Images rendered at once: those of the program where it is for a fixed number. `auto` measures at the first start
    how many are fastest.
    """
    sha256: str | None = None
    """Digest of the file, noted when a run begins: it is resumed with no other content."""

    def check(self, config: Config) -> None:
        if not self.path:
            raise ConfigError("generator.path must be a .pt2 file, got ''; python jobs/export_generator.py writes one")

    def settled(self) -> Self:
        return replace(self, path=absolute(self.path), sha256=self.sha256 or digest(self.path))


@settings
class DiffusersGenerator(GeneratorSettings):
    """A text-to-image pipeline of diffusers: a prompt is the class, another noise seed another view.

    Tian, Fan, Isola, Chang, Krishnan, "StableRep" (NeurIPS 2023, arXiv 2306.00984). Needs genray[diffusers].
    """

    kind: Literal["diffusers"] = "diffusers"
    model: str = ""
    """A directory with model_index.json, or a name at the Hugging Face hub."""
    revision: str | None = None
    """Commit of the model at the hub; what it calls main at the time, where it is not given."""
    prompts: tuple[str, ...] = ()
    """Prompts; the classes are their places in this list."""
    prompts_file: str | None = None
    """Text file of prompts, one in each line, in place of `prompts`."""
    prompts_sha256: str | None = None
    """Digest of that file, noted when a run begins: it is resumed with no other content."""
    steps: Positive = 25
    """Steps of denoising."""
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    """Weight of the prompt; a low one gives images that differ more."""
    image_size: Positive = 512
    """Pixels of a side; a multiple of what the model's decoder magnifies by."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """Arithmetic of weights and activations; CPUs want float32."""
    safety_checker: bool = True
    """Keep the pipeline's safety checker, if it has one. It blackens images, and a run ends at the first such one."""
    micro_batch: Positive | Literal["auto"] = 8
    """Images rendered at once; `auto` measures at the first start how many are fastest."""
    truncation: ClassVar[float] = 1.0

    def check(self, config: Config) -> None:
        if not self.model:
            raise ConfigError("generator.model must be a directory with model_index.json, or a name at the hub, got ''")
        if bool(self.prompts) == bool(self.prompts_file):
            given = "both" if self.prompts else "neither"
            raise ConfigError(f"generator.prompts or generator.prompts_file must be given, one of them, got {given}")
        if not all(map(str.strip, self.prompts)):
            raise ConfigError("generator.prompts must not be blank, got a blank one")
        if config.view.kind not in NOISE_VIEWS:
            raise ConfigError(
                f"view.kind must be 'independent' (each view another noise seed) or 'none' for a generator without "
                f"latents, got {config.view.kind!r} with generator.kind = 'diffusers'"
            )

    def settled(self) -> Self:
        model = str(Path(self.model).absolute()) if Path(self.model).is_dir() else self.model
        if self.prompts_file is None:
            return replace(self, model=model)
        file = absolute(self.prompts_file)
        return replace(self, model=model, prompts_file=file, prompts_sha256=self.prompts_sha256 or digest(file))

    def texts(self) -> tuple[str, ...]:
        """All prompts; raises ConfigError where the file has none or is another one than when the run began."""
        return self.prompts if self.prompts_file is None else _lines(self.prompts_file, self.prompts_sha256)


AnyGenerator = Annotated[
    BigGANGenerator | CustomGenerator | ExportedGenerator | DiffusersGenerator, Field(discriminator="kind")
]


def absolute(path: str) -> str:
    """A path that means the same in another directory; an empty one stays."""
    return path and str(Path(path).expanduser().absolute())


def digest(path: str) -> str | None:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        with Path(path).expanduser().open("rb") as file:
            found = sha256()
            while piece := file.read(1 << 20):
                found.update(piece)
            return found.hexdigest()
    except OSError:
        return None


def unchanged(field: str, path: str, expected: str | None) -> None:
    """Raise ConfigError where a file is not the one whose digest was noted; `field` is the setting that names it."""
    if expected is not None and (found := digest(path)) != expected:
        raise ConfigError(
            f"{field} must hold what it held when the run began (SHA-256 {expected}), got {path!r} with {found}; put "
            "that content back, or begin another run"
        )


@lru_cache(maxsize=4)
def _lines(path: str, expected: str | None) -> tuple[str, ...]:
    try:
        found = tuple(line.strip() for line in Path(path).expanduser().read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"generator.prompts_file must be a text file, got {path!r} ({error})") from None
    unchanged("generator.prompts_file", path, expected)
    if not found:
        raise ConfigError(f"generator.prompts_file must hold a prompt in each line, got {path!r}, which holds none")
    return found
