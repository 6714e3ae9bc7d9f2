"""The settings of each objective, which defines what an encoder learns from the views."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genray.config.schema import Fraction, Positive, PositiveFloat, settings


@settings
class Contrastive:
    """Contrastive loss with multiple positives: views that belong together attract, all others repel."""

    kind: Literal["simclr", "supcon"] = "simclr"
    """`simclr`: the views of one anchor belong together. `supcon`: all views of one class do."""
    temperature: PositiveFloat = 0.1
    """Similarities are divided by it. A lower one gives more weight to the nearest negatives."""
    base_temperature: PositiveFloat = 0.07
    """The loss is scaled by temperature / base_temperature."""


@settings
class Inverter:
    """Inverts the generator: predicts each view's latent, and its class if there are any, with a linear layer each."""

    kind: Literal["inverter"] = "inverter"


@settings
class Classifier:
    """Predicts the class that the generator was given, with a linear layer."""

    kind: Literal["classifier"] = "classifier"


@settings
class SimSiam:
    """Each view predicts the other views, with stopped gradients (Chen, He, arXiv 2011.10566)."""

    kind: Literal["simsiam"] = "simsiam"
    projection: tuple[Positive, Positive] = (2048, 2048)
    """Widths of the projection head's two hidden layers and output."""
    prediction: Positive = 512
    """Width of the predictor's hidden layer."""


@settings
class BYOL:
    """Each view predicts a moving-average network's output for the others (Grill et al., arXiv 2006.07733)."""

    kind: Literal["byol"] = "byol"
    projection: tuple[Positive, Positive] = (4096, 256)
    """Widths of the projection head's hidden layer and output."""
    prediction: Positive = 4096
    """Width of the predictor's hidden layer."""
    momentum: Fraction = 0.996
    """Decay of the moving average at the first step. It rises to 1 over the run along a half cosine."""


Objective = Annotated[Contrastive | Inverter | Classifier | SimSiam | BYOL, Field(discriminator="kind")]


CLASS_OBJECTIVES = ("supcon", "classifier")
"""Kinds that learn from classes only."""


INVARIANCE_OBJECTIVES = ("simclr", "simsiam", "byol")
"""Kinds that learn what the views of an anchor have in common."""
