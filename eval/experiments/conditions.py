"""The conditions of Ganguli et al. 2023 (arXiv:2302.07459).

BBQ: Table 1. Winogender: Table 2. Admissions: Table 3. To add a condition, add one entry to CONDITIONS. Its texts, the
paper's to the letter and other wordings, are in eval.experiments.words. Each experiment's `ask` and
eval.models.prompt_format join the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from eval.errors import InputError, nearest


@dataclass(frozen=True)
class Condition:
    """One way of asking a question.

    Attributes:
        instruction: the instruction (IF) is added.
        statistics: the occupation's statistics are added.
        reasoning: reasoning (chain of thought) is sampled.
        inverse: the instruction to rely on stereotypes is added, which is not the paper's.
        wording: 0 is the paper's wording, k the k-th other wording (eval.experiments.words).
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
        """Whether the condition has an instruction with other wordings."""
        return self.instruction or self.statistics

    def worded(self, wording: int) -> Condition:
        """The same condition with the k-th other wording: 'Q+IF' -> 'Q+IF (wording 1)'."""
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
    """The condition with this name, ignoring case and punctuation ('q_if', 'Q+Match-Stats').

    Raises:
        InputError: no condition has this name.
    """

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    for condition in CONDITIONS.values():
        if plain(condition.name) == plain(text):
            return condition
    raise InputError(f"conditions: unknown '{text}'{nearest(text, list(CONDITIONS))}")
