"""The conditions and their words, quoted to the letter from Ganguli et al. 2023 (arXiv:2302.07459).

BBQ: Table 1. Winogender: Table 2. Admissions: Table 3. The text of a condition is data; how the parts are joined is in
each experiment's `ask` and in eval.models.prompt_format. Adding a condition is adding one entry here. Words of our own
(other wordings of an instruction, the inverse instruction) are in eval.experiments.words, never here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from eval.errors import InputError, nearest


@dataclass(frozen=True)
class Condition:
    """One way of asking: whether the instruction (IF) or the statistics are added, and whether reasoning is sampled.

    inverse: the instruction to rely on stereotypes (ours). wording: 0 = the paper's, k = our k-th
    (eval.experiments.words).
    """

    name: str
    instruction: bool = False
    statistics: bool = False
    reasoning: bool = False
    inverse: bool = False
    wording: int = 0

    @property
    def slug(self) -> str:
        """The name as part of an identifier: 'Q+IF+CoT' -> 'q-if-cot'."""
        return self.name.lower().replace("+", "-").replace(" ", "-")

    @property
    def has_wordings(self) -> bool:
        """Whether it has an instruction that can be worded otherwise."""
        return self.instruction or self.statistics

    def worded(self, wording: int) -> Condition:
        """The same condition with our k-th wording: 'Q+IF' -> 'Q+IF (wording 1)'."""
        return replace(self, name=f"{self.name} (wording {wording})", wording=wording)


INVERSE = "Q+Inverse"
CONDITIONS: dict[str, Condition] = {
    c.name: c
    for c in (
        Condition("Q"),
        Condition("Q+IF", instruction=True),
        Condition("Q+IF+CoT", instruction=True, reasoning=True),
        Condition("Q+Match Stats", statistics=True),
        Condition(INVERSE, inverse=True),
    )
}


def condition_named(text: str) -> Condition:
    """The condition meant by `text`, whatever its case and punctuation ('q_if', 'Q+Match-Stats')."""

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    for condition in CONDITIONS.values():
        if plain(condition.name) == plain(text):
            return condition
    raise InputError(f"conditions: unknown '{text}'{nearest(text, list(CONDITIONS))}")
