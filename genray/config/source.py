"""The settings of each kind of source."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genray.config.schema import Positive, settings


class SourceSettings:
    """What all kinds of sources have in common."""

    renders: ClassVar[bool] = False
    """Whether it needs a generator."""


@settings
class Generated(SourceSettings):
    """Every image is rendered by the generator."""

    kind: Literal["generated"] = "generated"
    renders: ClassVar[bool] = True


@settings
class Images(SourceSettings):
    """A folder of real images instead of a generator. Views of an image differ by pixel augmentation only."""

    kind: Literal["images"] = "images"
    directory: str = ""
    """Directory with a subdirectory of images per class, or with images only."""
    image_size: Positive = 128
    """Side in pixels to which the central square of each image is resized."""
    digest: str | None = None
    """Digest of the names and sizes of the files, set when a run starts. The run resumes only with the same files."""


@settings
class Mix(SourceSettings):
    """Real images from a folder at some positions of each batch, rendered images at the others."""

    kind: Literal["mix"] = "mix"
    renders: ClassVar[bool] = True
    directory: str = ""
    """Directory with a subdirectory of images per class, or with images only. They get the generator's size."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of each batch that is real, at the same evenly spread positions in every batch."""
    classes: Literal["names", "order", "apart"] = "names"
    """Which classes of the generator the directories are. `names`: a directory named by a number is that class, any
    other is a new class. `order`: directories in alphabetical order are classes 0, 1, 2 and so on. `apart`: each
    directory is a new class.
    """
    digest: str | None = None
    """Digest of the names and sizes of the files, set when a run starts. The run resumes only with the same files."""

    def real(self, batch_size: int) -> int:
        """Number of real images in each batch."""
        return round(self.share * batch_size)


@settings
class Stored(SourceSettings):
    """Images written by `genray generate`, instead of the source that they came from."""

    kind: Literal["stored"] = "stored"
    directory: str = ""
    """Directory that `genray generate` wrote."""


AnySource = Annotated[Generated | Images | Mix | Stored, Field(discriminator="kind")]
