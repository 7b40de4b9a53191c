"""`python -m eval` as one of several processes, of which rank 1 comes to grief when it writes its second chunk.

    GRIEF=killed|error torchrun --nproc_per_node 2 -m tests.support.one_of_several run --model MODEL ...

killed: by SIGKILL with half a line written; error: an exception as a model's code may raise it.
"""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

from eval.__main__ import main
from eval.errors import run_main
from eval.runner.store import Store

append, calls = Store.append, 0


def grief(store: Any, *written: Any) -> None:
    global calls
    calls += 1
    if calls == 2 and os.environ["GRIEF"] == "error":
        raise ValueError("the model\nbroke")
    append(store, *written)
    if calls == 2:
        with store.records_path.open("rb+") as handle:
            handle.truncate(handle.seek(-40, os.SEEK_END))
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        mock.patch.object(Store, "append", grief).start()  # until the process ends
    run_main(main)
