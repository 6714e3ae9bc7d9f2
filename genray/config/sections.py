"""The sections of a configuration that have a single kind, and the optimisers."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from genray.config.schema import Bounds, Count, Fraction, NonNegative, Positive, PositiveFloat, Seconds, settings


@settings
class Pool:
    """The pool of generators. May change when a run is resumed."""

    num: Count = 1
    """Number of generators, or [min, max] to follow the learners' demand."""
    num_gpus: NonNegative = 1
    """GPUs per generator. Generators with a fraction share a GPU."""
    num_cpus: NonNegative = 1
    """CPUs per generator."""
    look_ahead_mib: Positive = 1024
    """Size of the rendered blocks kept ready for the learners, in MiB."""
    max_attempts: Positive = 3
    """Attempts at a ticket, each in a fresh process, before the run ends with the ticket's error; at most two for bad
    images.
    """
    ticket_timeout_s: Seconds = 120
    """Seconds after which a ticket counts as hung, or ten times the longest ticket of that process so far if that is
    longer. A generator that shows no sign of life for as long between two tickets counts as hung too.
    """
    start_timeout_s: Seconds = 1800
    """Seconds that a generator may take to load, and again for its first ticket, which may compile the network."""

    @property
    def bounds(self) -> Bounds:
        """The fewest and the most generators."""
        return Bounds.of(self.num)


@settings
class Stream:
    """Which anchors are shown, and in what batches."""

    batch_size: Annotated[int, Field(gt=1)] = 256
    """Anchors per optimiser step, over all learners."""
    num_views: Annotated[int, Field(ge=2, le=256)] = 2
    """Views per anchor. The first is the anchor itself."""
    num_anchors: Annotated[int, Field(gt=1)] | None = None
    """Number of distinct anchors. Default: unlimited."""
    num_neighbors: Positive | None = None
    """Number of distinct neighbours per anchor. Default: a new one each time that the anchor is shown."""
    classes: tuple[int, ...] | None = None
    """Classes of the anchors, for example [0, 3, 7]. Default: all classes of the generator."""
    class_weights: tuple[NonNegative, ...] | None = None
    """Relative frequency of each of these classes, in any unit. Default: all equally often."""
    ticket_batches: Positive | Literal["auto"] = 4
    """Batches rendered as one block; `auto` measures the best number at the first start. May change when a run is
    resumed.
    """
    reuse: Positive | Literal["auto"] = 1
    """How often each rendered view is used, each time with a different augmentation and batched with other anchors.
    `auto` measures at the first start how much reuse keeps the learners busy.
    """
    reuse_window: Annotated[int, Field(ge=2)] = 64
    """Batches that the learners keep for reuse, if `reuse` is more than 1."""


@settings
class Augment:
    """Pixel augmentation: a policy, and overrides of its numbers."""

    policy: Literal["genrep", "simclr", "digits", "none"] = "genrep"
    """`genrep` (the paper's), `simclr`, `digits` (mild, without flips), or `none` (resize and normalise only)."""
    size: Positive | None = None
    """Side of the cropped image in pixels. Default: 0.875 of the rendered side; all of it for `digits` and `none`."""
    scale: tuple[Fraction, Fraction] | None = None
    """Fraction of the area that a crop keeps, [min, max]."""
    flip: Fraction | None = None
    """Probability of a horizontal flip."""
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Field(ge=0, le=0.5)]] | None = None
    """Strength of the jitter in brightness, contrast, saturation and hue."""
    jitter_probability: Fraction | None = None
    """Probability of the colour jitter."""
    grey: Fraction | None = None
    """Probability of conversion to greyscale."""
    blur: Fraction | None = None
    """Probability of a Gaussian blur."""


@settings
class Model:
    """The encoder that is trained, and how it is computed."""

    backbone: str = "resnet50"
    """Any timm model name."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `timm.create_model`."""
    projection: tuple[Positive, Positive] = (2048, 128)
    """Widths of the projection head's hidden layer and output, for `simclr` and `supcon`. Other objectives have their
    own.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass."""
    channels_last: bool = True
    """Store images and weights in channels-last order, which is faster on most devices."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over all learners."""
    compile: bool = False
    """Compile the encoder with torch.compile."""


@settings
class SGD:
    """Plain momentum SGD, the paper's optimiser."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.03
    """Learning rate at the end of the warm-up."""
    momentum: Fraction = 0.9
    """Momentum of the updates."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty on all parameters."""


@settings
class LARS:
    """Layer-wise adaptive SGD, for large batches (You, Gitman, Ginsburg, arXiv 1708.03888)."""

    kind: Literal["lars"] = "lars"
    lr: PositiveFloat = 0.3
    """Learning rate at the end of the warm-up."""
    momentum: Fraction = 0.9
    """Momentum of the updates."""
    weight_decay: NonNegative = 1e-6
    """L2 penalty on weights, not on biases and norms."""
    trust: PositiveFloat = 1e-3
    """Trust coefficient: norm of a layer's update relative to the norm of its weights, at a learning rate of 1."""


@settings
class AdamW:
    """Adam with decoupled weight decay (Loshchilov, Hutter, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Learning rate at the end of the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    weight_decay: NonNegative = 1e-2
    """Decoupled decay of weights, not of biases and norms."""


Optimizer = Annotated[SGD | LARS | AdamW, Field(discriminator="kind")]


@settings
class Training:
    """Length of the training, and how often it is recorded."""

    steps: Positive = 10_000
    """Optimiser steps. The run consumes steps x batch_size anchors."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from zero."""
    final_lr: Fraction = 1e-3
    """Fraction of the learning rate at which the cosine schedule ends."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between two records of progress. They cost no time if they are at least a quarter of a second apart."""


@settings
class Learners:
    """The learners, their resources and their restarts. May change when a run is resumed."""

    num_workers: Count = 1
    """Number of data-parallel learners, or [min, max] to continue with fewer when one is lost and grow back later."""
    num_gpus: NonNegative = 1
    """GPUs per learner. Learners with a fraction share a GPU."""
    num_cpus: NonNegative = 1
    """CPUs per learner."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Consecutive restarts without a new checkpoint before the run gives up."""
    hang_timeout_s: Seconds = 300
    """Seconds without a sign of life after which a learner counts as hung."""
    resize_every_s: Seconds = 60
    """Seconds between two checks for room for more learners, if their number may change."""
    keep: Positive = 2
    """Number of checkpoints kept."""

    @property
    def bounds(self) -> Bounds:
        """The fewest and the most learners."""
        return Bounds.of(self.num_workers)


@settings
class Tracking:
    """What MLflow records of the run. May change when a run is resumed."""

    mlflow: bool = True
    """Record the run in MLflow."""
    uri: str | None = None
    """Tracking server or store. Default: MLFLOW_TRACKING_URI, or a database next to the runs."""
    experiment: str = "genray"
    """Name of the MLflow experiment."""
    model: str | None = "genray"
    """Registered model to which the encoder of a finished run is added as a version; none disables it."""
    sweep: str | None = None
    """Name of the sweep that the run belongs to. Its MLflow run is a child of the sweep's."""
    previews_every: Positive = 1000
    """Steps between two preview grids of anchors and their views."""
    system_every_s: Seconds | None = 10
    """Seconds between two samples of the load on the nodes and their GPUs; none disables it."""
