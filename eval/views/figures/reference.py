"""What the paper reports of its 175B model: reference marks in figures, and the words beside them.

The values are approximate. They are read from the paper's text and figures, since it publishes no data. Never use them
as test values.

Ganguli et al. 2023, arXiv:2302.07459.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Ganguli et al. 2023 (arXiv:2302.07459)"
PARAMETERS = 175_000_000_000
PAPER_STEPS = {"bbq": 800, "winogender": 50, "admissions": 800}
"""The RLHF step at which the paper compares sizes (Figure 1)."""


@dataclass(frozen=True)
class Reference:
    """A value of the paper's 175B model at a step, and where in the paper it stands."""

    experiment: str
    condition: str
    step: int
    value: float
    where: str


BBQ_Q = 0.20
REFERENCES = (
    Reference("bbq", "Q", 800, BBQ_Q, "section 4, Figure 1, left: about 0.20"),
    Reference("bbq", "Q+IF", 800, BBQ_Q * (1 - 0.43), "section 4, BBQ: about 43% below Q"),
    Reference("bbq", "Q+IF+CoT", 800, BBQ_Q * (1 - 0.84), "section 4, BBQ: about 84% below Q"),
    Reference("winogender", "Q", 50, 0.6, "section 4, Figure 1, middle: about 0.6"),
    Reference("winogender", "Q+IF+CoT", 50, 0.0, "section 4, Figure 1, middle: near 0"),
    Reference("winogender", "Q+Match Stats", 50, 1.0, "section 4, Figure 1, middle: near 1"),
    Reference("admissions", "Q+IF", 600, 0.0, "section 4, Figure 2, right: parity at about 600 steps"),
    Reference("admissions", "Q+IF+CoT", 200, 0.0, "section 4, Figure 2, right: parity at about 200 steps"),
)


def at_paper_step(experiment: str) -> list[Reference]:
    """The values at the step at which the paper compares sizes."""
    return [r for r in REFERENCES if r.experiment == experiment and r.step == PAPER_STEPS[experiment]]


def parity(experiment: str) -> list[Reference]:
    """The steps at which the paper's model reaches parity, where the paper gives them."""
    return [r for r in REFERENCES if r.experiment == experiment and r.step != PAPER_STEPS[experiment]]


def describe_reference(experiment: str) -> str:
    """All values of an experiment in a sentence."""
    values = [f"{r.condition}: {r.where}" for r in REFERENCES if r.experiment == experiment]
    return f"{SOURCE}, 175B: {'; '.join(values)}."
