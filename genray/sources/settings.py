"""The settings of each kind of source, and the rules that they must keep; importing this takes no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from genray.generators.settings import absolute
from genray.settings import ConfigError, settings

if TYPE_CHECKING:
    from genray.config import Config


class SourceSettings:
    """What the settings of every source can be asked."""

    renders: ClassVar[bool] = False
    """Whether it needs the generator."""

    def check(self, config: Config) -> None:
        """Raise ConfigError where they make no sense by themselves or with the rest of the configuration."""

    def settled(self) -> Self:
        """The same with what they name named for good: by an absolute path and a digest of what is there."""
        return self


@settings
class Generated(SourceSettings):
    """Every image is rendered by the generator."""

    kind: Literal["generated"] = "generated"
    renders: ClassVar[bool] = True


@settings
class Images(SourceSettings):
    """A folder of real images in place of a generator: all views of an image differ by pixel augmentation alone."""

    kind: Literal["images"] = "images"
    directory: str = ""
    """A directory for each class with its images below it, or images alone."""
    image_size: Annotated[int, Field(gt=0)] = 128
    """Pixels of a side, to which the largest square in the middle of an image is resized."""
    digest: str | None = None
    """Of the names and sizes of the files, noted when a run begins: it is resumed with no others."""

    def check(self, config: Config) -> None:
        _given(self.directory, "a directory of images")
        _no_gpu(config, "decoding images takes none")
        if config.view.kind != "none":
            raise ConfigError(
                f"view.kind must be 'none' where the source is a folder of images, which have no latents, got "
                f"{config.view.kind!r}"
            )
        for name in ("num_anchors", "num_neighbors", "classes", "class_weights"):
            if (value := getattr(config.stream, name)) is not None:
                raise ConfigError(
                    f"stream.{name} must not be given where the source is a folder of images (its images are the "
                    f"anchors, all of them in each epoch and without neighbours), got {value}"
                )

    def settled(self) -> Self:
        directory = absolute(self.directory)
        return replace(self, directory=directory, digest=self.digest or _digest(directory))


@settings
class Mix(SourceSettings):
    """Real images from a folder in some places of each batch, rendered ones in the others."""

    kind: Literal["mix"] = "mix"
    renders: ClassVar[bool] = True
    directory: str = ""
    """A directory for each class with its images below it, or images alone; they get the generator's size."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of each batch that is real; the same places in every batch, evenly spread."""
    classes: Literal["names", "order", "apart"] = "names"
    """Which classes of the generator the directories show. `names`: one that is called by a number shows that class,
    any other a class of its own. `order`: in alphabetic order they show classes 0, 1, 2 and so on. `apart`: each shows
    a class of its own.
    """
    digest: str | None = None
    """Of the names and sizes of the files, noted when a run begins: it is resumed with no others."""

    def check(self, config: Config) -> None:
        _given(self.directory, "a directory of images")
        batch = config.stream.batch_size
        if not 0 < self.real(batch) < batch:
            raise ConfigError(
                f"source.share must leave at least one real and one rendered image in a batch of {batch}, got "
                f"{self.share:g}"
            )

    def settled(self) -> Self:
        directory = absolute(self.directory)
        return replace(self, directory=directory, digest=self.digest or _digest(directory))

    def real(self, batch_size: int) -> int:
        """Real images in each batch."""
        return round(self.share * batch_size)


@settings
class Stored(SourceSettings):
    """What `genray generate` has written, in place of the source that it wrote down."""

    kind: Literal["stored"] = "stored"
    directory: str = ""
    """Directory with its manifest.json."""

    def check(self, config: Config) -> None:
        _given(self.directory, "a directory that genray generate has written")
        _no_gpu(config, "reading files takes none")
        for name in ("reuse", "ticket_batches"):
            if getattr(config.stream, name) == "auto" and config.generators.mode == "pool":
                raise ConfigError(
                    f"stream.{name} must be a number where views are read from files, which have an end, got 'auto'"
                )

    def settled(self) -> Self:
        return replace(self, directory=absolute(self.directory))


AnySource = Annotated[Generated | Images | Mix | Stored, Field(discriminator="kind")]


def _given(directory: str, what: str) -> None:
    if not directory:
        raise ConfigError(f"source.directory must be {what}, got ''")


def _no_gpu(config: Config, reason: str) -> None:
    if config.generators.mode == "pool" and config.generators.num_gpus:
        raise ConfigError(
            f"generators.num_gpus must be 0 for source.kind = {config.source.kind!r} ({reason}), got "
            f"{config.generators.num_gpus:g}"
        )


def _digest(directory: str) -> str:
    from genray.sources.listing import listing

    return listing(directory).digest
