"""The settings of each kind of generator."""

from __future__ import annotations

from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from genray.config.errors import ConfigError
from genray.config.files import require_unchanged
from genray.config.schema import NonNegative, Positive, PositiveFloat, settings

EMBEDDED_GENERATOR = "digit-scenes"
"""Name of the shipped generator, and of its walks and its navigator."""
DEFAULT_MICRO_BATCH = 64
"""Images rendered at once, by default."""
VIEWS_WITHOUT_LATENTS = ("independent", "none")
"""Kinds of latent views for a generator that has no latents, only a class and a noise seed."""


@settings
class BigGANGenerator:
    """BigGAN-deep of pytorch-pretrained-biggan: the embedded digit scenes, the published weights or your own."""

    kind: Literal["biggan"] = "biggan"
    model: str = EMBEDDED_GENERATOR
    """`digit-scenes` (embedded), `biggan-deep-128`, `-256` or `-512`, or a directory with config.json and weights."""
    truncation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Scale of the anchors' latents, which also selects the batch-norm statistics."""
    micro_batch: Positive | Literal["auto"] = DEFAULT_MICRO_BATCH
    """Images rendered at once; fixed for the whole run, since pixels depend on it. `auto` measures the fastest number
    at the first start.
    """
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Precision of weights and activations; norms, tanh and rounding stay float32. `tf32` affects only matrix products
    and convolutions on a GPU. All but float32 change pixels: `python benchmarks/generator.py` measures by how much.
    """
    compile: bool = False
    """Compile the network with torch.compile, as one graph for any truncation. The first ticket takes longer, and a few
    pixels change by one grey level.
    """
    cuda_graphs: bool = False
    """Launch the network as one CUDA graph, which speeds up small micro-batches. For generators with a GPU; previews
    rendered on a CPU ignore it. May change when a run is resumed.
    """


@settings
class CustomGenerator:
    """A generator of your own: `target` is called with `options` and must return a `genray.views.types.Generator`."""

    kind: Literal["custom"] = "custom"
    target: str = ""
    """Import path of the factory, `package.module:factory`."""
    image_size: Positive = 256
    """Side of the images in pixels."""
    latent_dim: Positive = 512
    """Dimension of the latents."""
    num_classes: Annotated[int, Field(ge=0)] = 0
    """Number of classes that it is conditioned on; 0 for an unconditional generator."""
    truncation: PositiveFloat = 1.0
    """Scale of the anchors' latents."""
    micro_batch: Positive | Literal["auto"] = DEFAULT_MICRO_BATCH
    """Images rendered at once; `auto` measures the fastest number at the first start."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""


@settings
class ExportedGenerator:
    """A program saved by torch.export: `z, label -> image`, or `z -> image` without classes."""

    kind: Literal["exported"] = "exported"
    path: str = ""
    """Path of the .pt2 file. `python jobs/export_generator.py` writes one that states its own sizes."""
    image_size: Positive | None = None
    """Side of the images in pixels, if the file does not state it."""
    latent_dim: Positive | None = None
    """Dimension of the latents, if the file does not state it."""
    num_classes: Annotated[int, Field(ge=0)] | None = None
    """Number of classes that it is conditioned on, if the file does not state it; 0 for an unconditional generator."""
    truncation: PositiveFloat = 1.0
    """Scale of the anchors' latents."""
    micro_batch: Positive | Literal["auto"] = DEFAULT_MICRO_BATCH
    """Images rendered at once; a program with a fixed batch size uses that. `auto` measures the fastest number at the
    first start.
    """
    sha256: str | None = None
    """SHA-256 of the file, set when a run starts. The run resumes only with the same content."""


@settings
class DiffusersGenerator:
    """A text-to-image pipeline of diffusers: a prompt is a class, and each noise seed gives another view.

    Tian, Fan, Isola, Chang, Krishnan, "StableRep" (NeurIPS 2023, arXiv 2306.00984). Needs genray[diffusers].
    """

    kind: Literal["diffusers"] = "diffusers"
    model: str = ""
    """Directory with model_index.json, or the name of a model on the Hugging Face hub."""
    revision: str | None = None
    """Commit of the model on the hub. Default: the current main."""
    prompts: tuple[str, ...] = ()
    """Prompts. The class of each is its position in this list."""
    prompts_file: str | None = None
    """Text file with a prompt per line, instead of `prompts`."""
    prompts_sha256: str | None = None
    """SHA-256 of that file, set when a run starts. The run resumes only with the same content."""
    steps: Positive = 25
    """Denoising steps."""
    guidance_scale: NonNegative = 7.5
    """Weight of the prompt. A lower one gives more varied images."""
    image_size: Positive = 512
    """Side of the images in pixels; a multiple of the upscaling factor of the model's decoder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """Precision of weights and activations. CPUs need float32."""
    safety_checker: bool = True
    """Keep the pipeline's safety checker, if it has one. A run ends at the first image that it blackens."""
    micro_batch: Positive | Literal["auto"] = 8
    """Images rendered at once; `auto` measures the fastest number at the first start."""
    truncation: ClassVar[float] = 1.0

    def all_prompts(self) -> tuple[str, ...]:
        """All prompts; raises ConfigError if the file has none or has changed since the run began."""
        return self.prompts if self.prompts_file is None else _read_prompts(self.prompts_file, self.prompts_sha256)


AnyGenerator = Annotated[
    BigGANGenerator | CustomGenerator | ExportedGenerator | DiffusersGenerator, Field(discriminator="kind")
]


@lru_cache(maxsize=4)
def _read_prompts(path: str, expected: str | None) -> tuple[str, ...]:
    try:
        prompts = tuple(line.strip() for line in Path(path).expanduser().read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"generator.prompts_file must be a text file, got {path!r} ({error})") from None
    require_unchanged("generator.prompts_file", path, expected)
    if not prompts:
        raise ConfigError(f"generator.prompts_file must hold a prompt per line, got {path!r}, which has none")
    return prompts
