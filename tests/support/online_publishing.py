"""python -m tests.support.online_publishing FOLDER: publishes online, to a server of ours in this process; what came of
it, as JSON by the names of the steps. A process of its own, since wandb's helper keeps the server that it was started
for.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.support.wandb_server import WandbServer, serving


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        os.environ[name] = str(folder / "home")
    os.environ |= {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online", "WANDB_SILENT": "true"}
    with serving() as server:
        os.environ["WANDB_BASE_URL"] = server.url
        print(json.dumps(steps(server, folder)))


def steps(server: WandbServer, folder: Path) -> dict[str, Any]:
    from eval.tracking import client as tracking
    from eval.tracking.during_training import publish_pending
    from eval.tracking.ledger import LEDGER
    from tests.support.published_runs import published
    from tests.support.tracked_runs import described, summary

    run = described(folder / "run")
    found: dict[str, Any] = {}

    def sent(name: str, **more: Any) -> None:
        (policy,) = published(run, **({"pictures": False} | more))[1]["policies"]
        names = ("rlhf_step", "eval/winogender/rho")
        rows = {r: [[row.get(n) for n in names] for row in server.rows(r)] for r in server.runs}
        targets = json.loads((run / LEDGER).read_text())["policies"]["p"]["targets"]
        targets = {name.removeprefix(server.url): place for name, place in targets.items()}
        found[name] = {"told": policy, "rows": rows, "targets": targets}

    summary(run, 0, 0.0, ("Q",))
    sent("first")
    sent("again")
    summary(run, 20, 1.0, ("Q",))
    server.files, tracking.ARRIVAL_SECONDS = 400, 0.5
    sent("refused")
    server.files, tracking.ARRIVAL_SECONDS = None, 30.0
    sent("taken")
    (run / LEDGER).unlink()
    sent("without ledger")
    sent("entity named", entity="team")
    sent("pictures", pictures=True)
    sent("pictures again", pictures=True)
    summary(run, 40, 0.5, ("Q",))
    server.refused = {"UpsertBucket": 403}
    found["forbidden"] = publish_pending(run)
    server.refused = {"Viewer": 401, "GetDefaultEntity": 401}
    found["no login"] = publish_pending(run)
    try:
        tracking.check_login()
    except tracking.InputError as error:
        found["no training"] = str(error)
    return found


if __name__ == "__main__":
    main()
