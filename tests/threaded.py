"""A server of the tests, run in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TypeVar


class Stallable(ThreadingHTTPServer):
    """A server on 127.0.0.1 whose handlers may stall until `released` is set."""

    daemon_threads = True

    def __init__(self, handler: type) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.released = threading.Event()


S = TypeVar("S", bound=Stallable)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Serves while the block runs; ends every stall then."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
