"""What a user is told in one line: a wrong input, or a training that can't go on."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line, begins with the name of the setting and says what
    was expected.
    """


class DivergedError(RuntimeError):
    """The loss became infinite or NaN. The message is one line and says at which step."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something, shortened to 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
