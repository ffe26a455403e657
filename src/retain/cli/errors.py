"""Errors as one line on standard error, and the exit codes.

0 done    1 a bug    2 a mistake that the user can mend    3 done, and the answer is no (rejected, problems found)    130 interrupted
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

OK, BUG, USER, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


class CommandError(Exception):
    """A mistake in how a command was called. The message is one line and says what to do."""


def is_user_error(error: BaseException) -> bool:
    """True for the errors that retain raises on purpose: each of them says what is wrong and what to do.

    Decided by where the class is defined, so that nothing heavy is imported to find out.
    """
    return isinstance(error, Exception) and any(kind.__module__.startswith("retain.") for kind in type(error).__mro__)


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    if is_user_error(error):
        return USER, one_line(error)
    if type(error).__module__.startswith("retain."):  # DurabilityLost: not an Exception, so that nobody swallows it
        return BUG, one_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return USER, "not enough memory; close other programs, or lower learn.batch_tokens (retain config set learn.batch_tokens 512)"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return USER, f"{place}{error.strerror.lower()}"
    return BUG, f"{type(error).__name__}: {one_line(error)} (this is a bug in retain: run with --debug to see where)"


def report(error: BaseException, console: Console, debug: bool) -> int:
    """Show an error on the console of standard error; its exit code. With `debug` the traceback comes first."""
    code, message = describe(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    complain(console, message)
    return code


def complain(console: Console, message: str) -> None:
    """One line that begins with "error:"."""
    from rich.text import Text

    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True, highlight=False)
