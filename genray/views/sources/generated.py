"""The source that renders: draws the latents, classes and seeds at each position and renders them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genray.config.generator import DEFAULT_MICRO_BATCH
from genray.views.anchors import anchors_of
from genray.views.generators import describe, load
from genray.views.types import BadImages, Block, Generator, SourceSpec

if TYPE_CHECKING:
    import torch

    from genray.config.run import Config


def describe_generated(config: Config) -> SourceSpec:
    """See `genray.views.sources.describe`."""
    spec, stream = describe(config.generator), config.stream
    views = stream.num_views if config.view.renders else 1
    return SourceSpec(**vars(spec), views=views, population=stream.num_anchors)


def render(
    generator: Generator,
    latents: np.ndarray,
    labels: np.ndarray,
    seeds: np.ndarray,
    micro_batch: int,
    device: torch.device,
) -> np.ndarray:
    """Render latents, always `micro_batch` at a time, so that every image is computed with the same kernels.

    Args:
        latents: float32 `[n, d]`.
        labels: int64 `[n]`; -1 if the generator has no classes.
        seeds: int64 `[n]`, for generators that draw noise.

    Returns:
        uint8 `[n, 3, H, W]`.

    Raises:
        BadImages: the images are not finite, or of another shape or type.
    """
    import torch

    from genray.views.generators.quantise import check_finite
    from genray.views.generators.to_host import ToHost

    count = len(latents)
    rows = np.minimum(np.arange(-(-count // micro_batch) * micro_batch), count - 1)  # the last micro-batch is padded
    z, y, s = (torch.from_numpy(column[rows]).to(device) for column in (latents, labels, seeds))
    expected = (micro_batch, 3, generator.image_size, generator.image_size)
    host, finite = ToHost((count, *expected[1:]), device), []
    for start in range(0, count, micro_batch):
        part = slice(start, start + micro_batch)
        out, is_finite = generator.unchecked(z[part], y[part] if generator.num_classes else None, s[part])
        finite.append(is_finite)
        if out.dtype != torch.uint8 or tuple(out.shape) != expected:
            raise BadImages(f"the generator must return uint8 images {expected}, got {out.dtype} {tuple(out.shape)}")
        host.put(start, out[: count - start])
    check_finite(torch.cat(finite)[:count])  # once, because each check waits for the device
    return host.array()


class GeneratorSource:
    """Renders with a generator that it loads once."""

    def __init__(self, config: Config, device: str | torch.device | None = None):
        import torch

        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = load(config.generator, self.device)
        self.anchors = anchors_of(config, describe(config.generator))
        asked = config.generator.micro_batch
        self.micro_batch = DEFAULT_MICRO_BATCH if asked == "auto" else asked  # a run has measured it by now

    def block_at(self, position: np.ndarray) -> Block:
        """See `genray.views.types.Source`.

        Raises:
            BadImages: the images have another shape or type, are not finite, or are constant.
        """
        n, view, views = len(position), self.config.view, self.config.stream.num_views
        anchor, epoch = self.anchors.at(position)
        latent = self.anchors.views(position, view, views)
        seeds = self.anchors.seeds(position, view, views)
        label = self.anchors.labels(anchor)
        rendered = latent.shape[1]
        images = render(
            self.generator,
            latent.reshape(n * rendered, latent.shape[2]),
            label.repeat(rendered),
            seeds.reshape(-1),
            self.micro_batch,
            self.device,
        )
        flat = images.reshape(len(images), -1)
        if (constant := flat.min(1) == flat.max(1)).any():
            raise BadImages(f"{constant.sum()} of {len(flat)} images are of one constant colour")
        return {
            "views": images.reshape(n, rendered, *images.shape[1:]),
            "label": label,
            "latent": latent,
            "anchor": anchor,
            "epoch": epoch,
        }
