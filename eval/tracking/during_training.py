"""Publishing beside work that must not stop for it."""

from __future__ import annotations

from pathlib import Path

from eval.errors import FAILURES, log_failure


def not_sent(output: Path, pictures: bool = False) -> str | None:
    """Publishes the evaluations that were not sent yet; in a line what is not on W&B then, and why: nothing that is
    computed stops for it. None where everything is, or W&B is disabled.

    pictures: with the page and the figures, in which the intervals are; drawing them takes seconds.
    """
    from eval.tracking import client as tracking
    from eval.tracking.publish import PublishConfig, publish

    try:
        if tracking.mode() == "disabled":
            return None
        _, told = publish(PublishConfig(runs=[str(output)], pictures=pictures), trainings=False)
    except (*FAILURES, *tracking.ERRORS) as error:
        told = {"error": log_failure(output, error), "policies": []}
    held = [why for policy in told["policies"] for why in policy["held"]]
    found = []
    if why := "; ".join(filter(None, [told["error"], *held])):
        found.append(f"not all results were sent ({why}); `python -m eval publish {output}` sends them")
    if changed := [one for policy in told["policies"] for one in policy["changed"]]:
        found.append(
            f"{len(changed)} results on W&B are not those of {output} ({changed[0]} ...): they have other numbers "
            "since; send all anew with another --project"
        )
    return "; ".join(found) or None
