"""Types that settings share: numbers with their ranges, texts and lists."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
# 2^-gamma, the smallest factor of a distance, must be representable in float32
Gamma = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]
# A settings file holds lists; the frozen model holds tuples.
Texts = Annotated[
    tuple[Text, ...],
    Field(strict=False),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Weight = Annotated[float, Field(ge=0)]
Weights = Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)]


def like(pattern: str, *examples: str) -> AfterValidator:
    """Make a validator that text matches a pattern; its message shows examples instead."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("like", f"must be text such as {' or '.join(examples)}")
        return text

    return AfterValidator(check)
