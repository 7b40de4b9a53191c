"""Processes that a test interrupts."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """For Popen's preexec_fn: Ctrl-C ends the process, also where the tests were started to ignore it (by nohup)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
