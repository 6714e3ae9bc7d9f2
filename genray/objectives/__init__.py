"""Objectives: what an encoder learns from the views. One small module for each idea, which owns its heads.

Importing this module needs no torch, so that reading a configuration does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from genray.settings import ConfigError, settings

if TYPE_CHECKING:
    from genray.config import Config, Stream
    from genray.generators import GeneratorSpec
    from genray.model import Encoder
    from genray.plan import Plan

Width = Annotated[int, Field(gt=0)]


@settings
class Contrastive:
    """Views that belong together attract, all others repel; any number of views (the multi-positive loss)."""

    kind: Literal["simclr", "supcon"] = "simclr"
    """`simclr`: the views of one anchor belong together. `supcon`: all views of one class do."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Scale by which similarities are divided; a smaller one makes the nearest negatives count more."""
    base_temperature: Annotated[float, Field(gt=0)] = 0.07
    """The loss is scaled by temperature / base_temperature."""


@settings
class Inverter:
    """The generator inverted: each view's own latent, and its class where there are any, by a linear layer each."""

    kind: Literal["inverter"] = "inverter"


@settings
class Classifier:
    """The class that the generator was given, by a linear layer."""

    kind: Literal["classifier"] = "classifier"


@settings
class SimSiam:
    """Each view predicts the other views, through which no gradient flows (Chen, He, arXiv 2011.10566)."""

    kind: Literal["simsiam"] = "simsiam"
    projection: tuple[Width, Width] = (2048, 2048)
    """Width of the projection head's two hidden layers and of its output."""
    prediction: Width = 512
    """Width of the predictor's hidden layer."""


@settings
class BYOL:
    """Each view predicts what a slow copy of the network makes of the others (Grill et al., arXiv 2006.07733)."""

    kind: Literal["byol"] = "byol"
    projection: tuple[Width, Width] = (4096, 256)
    """Width of the projection head's hidden layer and of its output."""
    prediction: Width = 4096
    """Width of the predictor's hidden layer."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """Share of itself that the slow copy keeps at the first step; it rises to 1 over the run, along half a cosine."""


Objective = Annotated[Contrastive | Inverter | Classifier | SimSiam | BYOL, Field(discriminator="kind")]

CLASSES = ("supcon", "classifier")
"""Kinds that learn from classes alone."""
SHARED = ("simclr", "simsiam", "byol")
"""Kinds that learn from what the views of an anchor share."""


def check(config: Config, source: GeneratorSpec, rendered: GeneratorSpec) -> None:
    """The rules that tie the objective to what is shown and to the latent views of what is rendered; ConfigError."""
    kind, name = config.objective.kind, source.name
    if kind in CLASSES and source.num_classes < 2:
        raise ConfigError(
            f"objective.kind must be one that needs no classes ({', '.join(SHARED)}, inverter) for a source with "
            f"fewer than two, got {kind!r} with {name}"
        )
    if kind == "inverter" and not source.latent_dim:
        raise ConfigError(
            f"objective.kind must be one that needs no latents ({', '.join((*SHARED, *CLASSES))}) for a source "
            f"without any, got 'inverter' with {name}"
        )
    if kind in SHARED and config.view.draws_all_anew(rendered) and shown_classes(config.stream, rendered) < 2:
        raise ConfigError(
            "view.kind must not be 'independent' where fewer than two classes are shown (the views of an anchor would "
            f"share nothing that others do not), got {config.view.kind!r} with {rendered.name}"
        )


def shown_classes(stream: Stream, spec: GeneratorSpec) -> int:
    """How many classes of the generator the anchors have; 0 where it has none."""
    if stream.class_weights is not None:
        return sum(map(bool, stream.class_weights))
    return spec.num_classes if stream.classes is None else len(stream.classes)


def build(config: Config, plan: Plan) -> Encoder:
    """The untrained network of a run on the CPU, a function of its configuration and the seed alone.

    So every learner starts from the same network, and the untrained baseline is that network again. The backbone is
    the same for all objectives. The caller's random state is neither used nor moved.

    Raises:
        ConfigError: timm has no such model, or the model does not take the `model_args`.
    """
    import torch

    from genray import model
    from genray.objectives.contrastive import ContrastiveEncoder
    from genray.objectives.noncontrastive import BYOLEncoder, SimSiamEncoder
    from genray.objectives.regression import RegressionEncoder

    encoder: Encoder
    views = config.stream.num_views
    with model.first_weights(config.seed):
        backbone = model.build_backbone(config.model)
        match config.objective:
            case Contrastive() as objective:
                encoder = ContrastiveEncoder(backbone, views, objective, config.model.projection)
            case Inverter():
                encoder = RegressionEncoder(backbone, views, plan.latent_dim, plan.num_classes)
            case Classifier():
                encoder = RegressionEncoder(backbone, views, 0, plan.num_classes)
            case SimSiam() as objective:
                encoder = SimSiamEncoder(backbone, views, objective)
            case BYOL() as objective:
                encoder = BYOLEncoder(backbone, views, objective)
    return encoder.to(memory_format=torch.channels_last) if config.model.channels_last else encoder
