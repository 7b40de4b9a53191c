"""A model's name, and its kind: sizes of one kind of model belong on one line, different kinds do not."""

from __future__ import annotations

import re
from pathlib import Path

from eval.curves.gather import Curve

SIZE = re.compile(
    r"(?<![a-z0-9])(\d+(\.\d+)?[kmb]\d*|\d{4})(?![a-z0-9])|(?<=[-_. ])(small|medium|large|x*s|m|x*l)$", re.IGNORECASE
)
"""What distinguishes names of one kind of model: a size (70m, 1.4b, 1b7), a month (0425), or a final small, m, xl ...
"""


def model_name(curve: Curve) -> str:
    """The last part of the model's path or hub id. For MODEL/model, which trainers write, it is MODEL."""
    path = Path(curve.model)
    return (path.parent.name if path.name == "model" else path.name) or curve.model


def kind(curve: Curve) -> str:
    """The model's name without its size: 'pythia' for 'pythia-70m'. The whole name where it is nothing but a size."""
    rest = [part for part in re.split(r"[-_ ]+", SIZE.sub("", model_name(curve))) if part.strip(".")]
    return "-".join(rest) or model_name(curve)
