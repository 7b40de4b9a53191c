"""Errors in user input. Each is one line with the value, the constraint and the remedy; the exit status is 2."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from eval.secrets import masked_text

log = logging.getLogger(__name__)


class InputError(Exception):
    """An error in what the user gave.

    Args:
        text: one line with the value, the constraint and the remedy. Secrets in it are masked.
    """

    def __init__(self, text: str) -> None:
        super().__init__(masked_text(text))


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point and exits the process.

    An InputError prints its one line on stderr and exits with status 2; Ctrl-C exits with 130, success with 0.
    """
    try:
        main()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint that follows an unknown name in an error message.

    Returns:
        "; did you mean 'X'?" for the known name most similar to `name`. Without a similar one, the list of known names
        where there are at most 20, else ''.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""


FAILURES = (
    InputError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, MemoryError,
)  # fmt: skip
"""Bad input, and what a model's own code may raise. When several checkpoints are evaluated, one that fails with these
does not stop the next.
"""


def log_failure(what: object, error: Exception) -> str:
    """Logs that one of several tasks failed and that the others continue, with a traceback unless the input was bad.

    Args:
        what: the task, as the log names it.
        error: why it failed.

    Returns:
        The reason in one line, secrets masked.
    """
    why = masked_text(" ".join(str(error).split()))
    if isinstance(error, InputError):
        log.error("failed, going on with the rest: %s", why)
        return why
    log.error("failed, going on with the rest: %s", what, exc_info=error)
    return f"{type(error).__name__}: {why[:200]}"
