"""A server of the tests, run in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any, TypeVar


class Stallable(ThreadingHTTPServer):
    """A server on 127.0.0.1 whose handlers may stall until `released` is set.

    Closing it breaks off its connections and waits for their threads: one that is within torch when the interpreter
    ends aborts the process.
    """

    daemon_threads = False

    def __init__(self, handler: type) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.released = threading.Event()
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().close_request(request)

    def server_close(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # closed by the other side
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


S = TypeVar("S", bound=Stallable)


@contextlib.contextmanager
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
