"""Bad input: one line that says the value, the constraint and the remedy; exit status 2."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from eval.secrets import masked_text

log = logging.getLogger(__name__)


class InputError(Exception):
    """Something the user gave is wrong. The text is one line: the value, the constraint, the remedy; secrets masked."""

    def __init__(self, text: str) -> None:
        super().__init__(masked_text(text))


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point; bad input ends with its one line on stderr and exit status 2, Ctrl-C with 130."""
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
    """'; did you mean X?' for the known name closest to `name`, else the list of known names if it is short."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""


FAILURES = (
    InputError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, MemoryError,
)  # fmt: skip
"""Bad input and what a model's own code may raise: the next one of several is still evaluated."""


def log_failure(what: object, error: Exception) -> str:
    """Logs that one of several failed and the rest goes on, with a traceback unless it is bad input.

    Returns:
        Why it failed, in one line.
    """
    why = masked_text(" ".join(str(error).split()))
    if isinstance(error, InputError):
        log.error("failed, going on with the rest: %s", why)
        return why
    log.error("failed, going on with the rest: %s", what, exc_info=error)
    return f"{type(error).__name__}: {why[:200]}"
