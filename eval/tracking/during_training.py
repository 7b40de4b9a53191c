"""Publishing during work that must not stop because of it."""

from __future__ import annotations

from pathlib import Path

from eval.errors import FAILURES, log_failure


def publish_pending(output: Path, pictures: bool = False) -> str | None:
    """Publishes the evaluations that were not sent yet. Never raises for a failure to send.

    Args:
        output: the folder of the run.
        pictures: whether to send the page and the figures, which show the intervals and take seconds to draw.

    Returns:
        A line that says what is not on W&B afterwards, and why; None where everything is, or W&B is disabled.
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
