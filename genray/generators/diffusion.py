"""Text-to-image pipelines of diffusers as generators: an image is a pure function of its prompt and its noise seed.

StableRep (Tian, Fan, Isola, Chang, Krishnan, arXiv 2306.00984) learns from several images of one prompt as views of one
another. Importing this module takes neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.generators.settings import DiffusersGenerator
from genray.settings import ConfigError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genray.generators.pixels import Quantised

INDEX = "model_index.json"


def is_here(config: DiffusersGenerator) -> bool:
    """Whether the model is a directory, or seems to be in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if (Path(config.model) / INDEX).is_file():
        return True
    return isinstance(try_to_load_from_cache(config.model, INDEX, revision=config.revision), str)


def download(config: DiffusersGenerator) -> None:
    """See to it that a model of the hub is in its cache; raises ConfigError where it is not and cannot be fetched."""
    if is_here(config):
        return
    try:
        _diffusers().DiffusionPipeline.download(config.model, revision=config.revision)
    except (OSError, ValueError) as error:
        raise _unusable(config, error) from None


def load_diffusion(config: DiffusersGenerator, device: torch.device) -> Quantised:
    """The pipeline of a directory or of the hub's cache; what is not there is downloaded.

    Raises:
        ConfigError: diffusers is not installed, there is no such model, or it cannot make images of this size.
    """
    import torch

    from genray.generators.pixels import Quantised

    pipeline_class, of_hub = _diffusers().DiffusionPipeline, not Path(config.model).is_dir()
    options = {"revision": config.revision, "torch_dtype": getattr(torch, config.dtype)}
    try:
        # A cached model is loaded without a look at the hub.
        offline = not of_hub or is_here(config)
        pipeline = pipeline_class.from_pretrained(config.model, local_files_only=offline, **options)
    except (OSError, ValueError) as error:
        raise _unusable(config, error) from None
    scale = getattr(pipeline, "vae_scale_factor", 1)
    if config.image_size % scale:
        raise ConfigError(
            f"generator.image_size must be a multiple of {scale}, by which the decoder of {config.model} magnifies, "
            f"got {config.image_size}"
        )
    if not config.safety_checker and getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return Quantised(Diffusion(pipeline.to(device), config), device)


class Diffusion:
    """A pipeline, called as generators are.

    The initial noise, and what a sampler draws on the way, comes from a generator of each image's own on the CPU, so
    that neither the other images of a micro-batch nor the device decides it.
    """

    latent_dim = 0

    def __init__(self, pipeline: Any, config: DiffusersGenerator):
        self.pipeline, self.prompts = pipeline, config.texts()
        self.image_size, self.num_classes = config.image_size, len(self.prompts)
        self.options = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance_scale,
            "height": config.image_size,
            "width": config.image_size,
            "output_type": "pt",
        }

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """Images in [-1, 1], `[n, 3, H, W]`, of prompts `[n]` and noise seeds `[n]`; the latents hold nothing.

        Raises:
            UserError: the safety checker has blackened an image.
        """
        import torch

        if labels is None or seeds is None:
            raise ValueError("a pipeline renders prompts: labels and seeds must be given")
        texts = [self.prompts[label] for label in labels.tolist()]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        made = self.pipeline(prompt=texts, generator=noise, **self.options)
        flagged = getattr(made, "nsfw_content_detected", None) or []
        if bad := [text for text, seen in zip(texts, flagged, strict=False) if seen]:
            raise UserError(
                f"generator.prompts must be ones whose images the safety checker lets pass, got {bad[0]!r}; change it, "
                "or set generator.safety_checker to false"
            )
        return 2 * made.images.float() - 1  # type: ignore[no-any-return]


def _diffusers() -> Any:
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"generator.kind must be one whose packages are installed, got 'diffusers' ({error}); "
            "pip install 'genray[diffusers]'"
        ) from None
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return diffusers


def _unusable(config: DiffusersGenerator, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(
        f"generator.model must be a directory with {INDEX}, or a pipeline at the hub, got {config.model!r} ({reason})"
    )
