"""What to quote of an error that another library raised."""

from __future__ import annotations

import re


def reason(error: BaseException) -> str:
    """The line of the error's message that tells something: Keras puts a heading above it, and colours.

    Example:
        >>> reason(ValueError("Exception encountered when calling LSTM.call().\\n\\n\\x1b[1mIt does not fit.\\x1b[0m"))
        'It does not fit.'
    """
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return telling[0] if telling else type(error).__name__
