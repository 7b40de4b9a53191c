"""Publishing beside work that must not stop for it."""

from __future__ import annotations

from pathlib import Path

from eval.errors import FAILURES, log_failure


def publish_pending(output: Path, pictures: bool = False) -> str | None:
    """Publishes the evaluations that were not sent yet; in a line what is not on W&B then, and why: nothing that is
    computed stops for it. None where everything is, or W&B is disabled.

    pictures: with the page and the figures, in which the intervals are; drawing them takes seconds.
    """
    from eval.tracking import client as tracking
    from eval.tracking.publish import PublishConfig, publish

    try:
        if tracking.mode() == "disabled":
            return None
        _, result = publish(PublishConfig(runs=[str(output)], pictures=pictures), trainings=False)
    except (*FAILURES, *tracking.ERRORS) as error:
        result = {"error": log_failure(output, error), "policies": []}
    reasons = [why for policy in result["policies"] for why in policy["held"]]
    messages = []
    if why := "; ".join(filter(None, [result["error"], *reasons])):
        messages.append(f"not all results were sent ({why}); `python -m eval publish {output}` sends them")
    if changed := [row_name for policy in result["policies"] for row_name in policy["changed"]]:
        messages.append(
            f"{len(changed)} results on W&B are not those of {output} ({changed[0]} ...): they have other numbers "
            "since; send all anew with another --project"
        )
    return "; ".join(messages) or None
