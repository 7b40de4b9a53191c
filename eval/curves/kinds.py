"""What a model is called, and of which kind it is: sizes of one kind belong on one line, other models do not."""

from __future__ import annotations

import re
from pathlib import Path

from eval.curves.gather import Curve

SIZE = re.compile(
    r"(?<![a-z0-9])(\d+(\.\d+)?[kmb]\d*|\d{4})(?![a-z0-9])|(?<=[-_. ])(small|medium|large|x*s|m|x*l)$", re.IGNORECASE
)
"""What names of sizes of one kind of model differ in: 70m, 1.4b, 1b7; a month (0425); at the end small, m, xl."""


def model_name(curve: Curve) -> str:
    """The last part of the model's path or hub id; of a stage's own MODEL/model, as trainers leave it, the stage's."""
    path = Path(curve.model)
    return (path.parent.name if path.name == "model" else path.name) or curve.model


def kind(curve: Curve) -> str:
    """The model's name without its size: 'pythia' of 'pythia-70m'. The whole name where it is a size only."""
    rest = [part for part in re.split(r"[-_ ]+", SIZE.sub("", model_name(curve))) if part.strip(".")]
    return "-".join(rest) or model_name(curve)
