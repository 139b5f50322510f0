"""Bad input ends in one line on stderr and exit code 2, never in a usage screen or a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

BAD_INPUT = 2
INTERRUPTED = 130
# typer has its own copy of click in newer versions; this is the parent of all errors in parsing arguments in either
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class OneLineErrors(TyperGroup):
    """A group of commands that tells a parsing error in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As typer's; `standalone_mode` False raises instead of printing and exiting."""
        extra |= {"windows_expand_args": windows_expand_args, "standalone_mode": False}
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, **extra)
        try:
            code = super().main(args, prog_name, complete_var, **extra)
        except _UsageError as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "lorafam"
            message: str = error.format_message()  # type: ignore[attr-defined]
            if not message:
                # called without a command: the help has been shown
                sys.exit(BAD_INPUT)
            fail(message, command=command)
        except typer.Abort:
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, *, command: str, code: int = BAD_INPUT) -> NoReturn:
    """Prints "command: message" as one line on stderr and exits."""
    line = " ".join(message.split())
    sys.stderr.write(f"{command}: {line}\n")
    sys.exit(code)
