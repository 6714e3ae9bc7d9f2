"""What sections are built from: frozen, validated dataclasses whose docstrings are the help, and types of fields."""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, Field

T = TypeVar("T")

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Count = Positive | tuple[Positive, Positive]
"""A number, or [min, max]."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that validates its fields, refuses unknown ones and uses docstrings as help."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, config=config)(cls))


class Bounds(NamedTuple):
    """The smallest and the largest number that a `Count` allows."""

    least: int
    most: int

    @classmethod
    def of(cls, count: int | tuple[int, int]) -> Bounds:
        """The bounds of a `Count`.

        >>> Bounds.of(3), Bounds.of((1, 3))
        (Bounds(least=3, most=3), Bounds(least=1, most=3))
        """
        return cls(*count) if isinstance(count, tuple) else cls(count, count)
