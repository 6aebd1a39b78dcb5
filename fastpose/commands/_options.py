"""How commands read options."""

from __future__ import annotations

import math


def numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """Finite numbers with commas between them.

    Args:
        option: name of the option, for the message.
        text: what was given.
        form: what is allowed, such as ``"X,Y"``.

    Raises:
        ValueError: if ``text`` does not hold as many numbers as ``form`` names.
    """
    try:
        values = tuple(float(number) for number in text.split(","))
    except ValueError:
        values = ()
    if len(values) != form.count(",") + 1 or not all(map(math.isfinite, values)):
        raise ValueError(f"{option} must be {form} in numbers, got {text!r}")
    return values
