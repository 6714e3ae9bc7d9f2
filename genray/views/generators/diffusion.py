"""Text-to-image pipelines of diffusers as generators: an image is a pure function of its prompt and noise seed.

StableRep (Tian, Fan, Isola, Chang, Krishnan, arXiv 2306.00984) treats several images of one prompt as views of each
other. Importing this module imports neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.config.errors import ConfigError, UserError
from genray.config.generator import DiffusersGenerator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genray.views.generators.quantise import Quantised

INDEX = "model_index.json"


def is_local(config: DiffusersGenerator) -> bool:
    """Whether the model is a directory or appears to be in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if (Path(config.model) / INDEX).is_file():
        return True
    return isinstance(try_to_load_from_cache(config.model, INDEX, revision=config.revision), str)


def download(config: DiffusersGenerator) -> None:
    """Download a model of the hub unless it is cached; raises ConfigError if that fails."""
    if is_local(config):
        return
    try:
        _diffusers().DiffusionPipeline.download(config.model, revision=config.revision)
    except (OSError, ValueError) as error:
        raise _unusable(config, error) from None


def load_diffusion(config: DiffusersGenerator, device: torch.device) -> Quantised:
    """The pipeline in a directory or the hub's cache; missing files are downloaded.

    Raises:
        ConfigError: diffusers is not installed, there is no such model, or it cannot render images of this size.
    """
    import torch

    from genray.views.generators.quantise import Quantised

    pipeline_class, of_hub = _diffusers().DiffusionPipeline, not Path(config.model).is_dir()
    options = {"revision": config.revision, "torch_dtype": getattr(torch, config.dtype)}
    try:
        # A cached model is loaded without contacting the hub.
        offline = not of_hub or is_local(config)
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
    """A pipeline with the call signature of a generator.

    The initial noise and the sampler's random numbers come from one random generator per image on the CPU, so that they
    depend neither on the rest of the micro-batch nor on the device.
    """

    latent_dim = 0

    def __init__(self, pipeline: Any, config: DiffusersGenerator):
        self.pipeline, self.prompts = pipeline, config.all_prompts()
        self.image_size, self.num_classes = config.image_size, len(self.prompts)
        self.options = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance_scale,
            "height": config.image_size,
            "width": config.image_size,
            "output_type": "pt",
        }

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """Images in [-1, 1], `[n, 3, H, W]`, of prompts `[n]` and noise seeds `[n]`; latents are empty.

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
        if bad := [text for text, is_flagged in zip(texts, flagged, strict=False) if is_flagged]:
            raise UserError(
                f"generator.prompts must be ones whose images pass the safety checker, got {bad[0]!r}; change it, or "
                "set generator.safety_checker to false"
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
