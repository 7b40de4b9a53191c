"""Encodes dialogues as token ids and finds where the answer begins.

Two formats (Ganguli et al. 2023 used the first):
- paper: each turn is "\\n\\nHuman: " or "\\n\\nAssistant: " followed by its text, nothing else. A BOS token is added
  only if the tokenizer adds one by default.
- chat: the tokenizer's own chat template with continue_final_message=True. The assistant's beginning is the content of
  the last message, neither closed nor followed by a space. Special tokens are those that the template writes. A system
  turn that the template adds by itself is kept or dropped by an option; the choice and the text are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from eval.errors import InputError
from eval.types import Answer, Prompt

PAPER_TURNS = {"human": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
TURN_MARKS = tuple(mark.rstrip() for mark in PAPER_TURNS.values())
CHAT_ROLES = {"human": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of each candidate after it.

    boundary_moved: number of the prompt's last tokens that were moved into every candidate, because for at least one of
    them the tokenizer merges tokens across the boundary. Each candidate's probability then includes the same moved
    text, so ratios between candidates stay those of the complete strings.
    """

    context: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    boundary_moved: int = 0


@dataclass(frozen=True)
class Format:
    """How dialogues are written.

    Attributes:
        opening: what the chat template writes before the first human turn (BOS and a default system turn).
        bos: the part of the opening that stays when the system turn is dropped.
        keep_system: whether the default system turn is kept.
        unclear: the opening and the beginning of the first human turn, if they cannot be separated; else ''.
    """

    name: str
    opening: str = ""
    bos: str = ""
    keep_system: bool = True
    unclear: str = ""

    @property
    def system_turn(self) -> str:
        """For the record: 'none', or 'kept: ' or 'dropped: ' and the text of the default system turn."""
        if self.unclear:
            return f"unknown, not told apart from the first turn: {self.unclear}"
        text = self.opening.removeprefix(self.bos)
        return f"{'kept' if self.keep_system else 'dropped'}: {text}" if text else "none"


def choose_format(wanted: str, tokenizer: PreTrainedTokenizerBase, system_turn: str = "keep") -> Format:
    """Chooses chat or paper.

    Args:
        wanted: chat, paper or auto. auto is chat if the tokenizer has a chat template.
        tokenizer: the model's tokenizer.
        system_turn: keep or drop the template's default system turn.

    Raises:
        InputError: chat without a template, or a system turn that cannot be dropped.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if wanted == "chat" and not has_template:
        raise InputError("format chat: the tokenizer has no chat template; use --format paper")
    if wanted == "paper" or not has_template:
        return Format("paper")
    head, begin = _head(tokenizer)
    if not begin:
        if system_turn == "drop":
            raise InputError(
                "system_turn drop: this chat template's opening cannot be separated from the first turn; use "
                "--system_turn keep or --format paper"
            )
        return Format("chat", unclear=head)
    opening = head.removesuffix(begin)
    bos = str(tokenizer.bos_token or "")
    # ChatML's tokenizers call the mark that begins every turn their BOS; that is not a BOS
    if begin.startswith(bos) or not opening.startswith(bos):
        bos = ""
    return Format("chat", opening, bos, system_turn == "keep")


def _head(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Finds the beginning of a rendered dialogue.

    Returns:
        (all text before the first human text; its end that begins a human turn). A human turn's beginning is read off
        the second human turn; it is '' if the first turn begins differently.
    """
    first_question, first_answer, second_question = "asked0", "answered1", "again2"
    messages = [{"role": "user", "content": first_question}, {"role": "assistant", "content": first_answer}]
    one_exchange: Any = tokenizer.apply_chat_template(messages, tokenize=False)
    two_questions: Any = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": second_question}], tokenize=False
    )
    close = one_exchange.partition(first_answer)[2]  # how the assistant's turn is closed
    between = two_questions.partition(first_answer)[2].partition(second_question)[0]
    head = two_questions.partition(first_question)[0]
    begin = between.removeprefix(close)  # how a human turn begins
    consistent = between.startswith(close) and head.endswith(begin)
    return head, begin if consistent else ""


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, style: Format) -> str:
    """The dialogue as text, ending with the assistant's beginning. InputError if the template changes a turn's text."""
    if style.name == "paper":
        return paper_text(prompt)
    messages = [{"role": CHAT_ROLES[t.role], "content": t.text} for t in prompt.turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert isinstance(text, str)
    lost = [t.text for t in prompt.turns if t.text not in text]
    if lost or not text.endswith(prompt.turns[-1].text):
        changed = (lost or [prompt.turns[-1].text])[0]
        raise InputError(
            f"format chat: this tokenizer's template changes the text of a turn ({changed[:60]!r} ...), so the "
            "question would not be the experiment's; use --format paper"
        )
    if not style.keep_system and style.opening:
        if not text.startswith(style.opening):
            raise InputError("system_turn drop: the template's opening depends on the dialogue; use --system_turn keep")
        text = style.bos + text.removeprefix(style.opening)
    return text


def paper_text(prompt: Prompt) -> str:
    """The dialogue in the paper's format. It needs no tokenizer."""
    return "".join(PAPER_TURNS[t.role] + t.text for t in prompt.turns)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds a BOS token before plain text by default."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def encode(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, style: Format) -> list[Encoded]:
    """Encodes prompts with their candidates. Raises InputError for a candidate that adds no token."""
    texts: list[str] = []
    for prompt in prompts:
        rendered = render(prompt, tokenizer, style)
        texts += [rendered, *(rendered + c for c in prompt.candidates)]
    # A template writes its special tokens itself; plain text gets a BOS where the tokenizer would add one.
    ids: Any = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    bos: tuple[Any, ...] = (tokenizer.bos_token_id,) if style.name == "paper" and adds_bos(tokenizer) else ()
    encoded, at = [], 0
    for prompt in prompts:
        n = 1 + len(prompt.candidates)
        encoded.append(_split(prompt, [bos + tuple(x) for x in ids[at : at + n]]))
        at += n
    return encoded


def _split(prompt: Prompt, ids: list[tuple[int, ...]]) -> Encoded:
    """Splits off the longest beginning that the prompt and all its candidates share; the rest are the candidates."""
    context, wholes = ids[0], ids[1:]
    shared = len(context)
    for whole in wholes:
        shared = min(shared, _common(context, whole))
    candidates = tuple(whole[shared:] for whole in wholes)
    for text, candidate in zip(prompt.candidates, candidates, strict=True):
        if not candidate:
            raise InputError(f"candidate {text!r} adds no token to the prompt; the tokenizer cannot express it")
    return Encoded(context[:shared], candidates, len(context) - shared)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def parts(e: Encoded) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yields (sequence, next token) for every token of every candidate."""
    for candidate in e.candidates:
        for k, token in enumerate(candidate):
            yield e.context + candidate[:k], token


def answer_of(e: Encoded, known: Mapping[tuple[int, ...], Mapping[int, float]]) -> Answer:
    """Sums the log-probabilities of each candidate's tokens.

    Args:
        e: the encoded prompt.
        known: {sequence: {next token: its log-probability}}.
    """
    sums = [
        sum(known[e.context + candidate[:k]][token] for k, token in enumerate(candidate)) for candidate in e.candidates
    ]
    return Answer(np.array(sums), len(e.context), e.boundary_moved)


def clean(text: str) -> str:
    """The reasoning, cut before any further turn that the model began, without surrounding white space."""
    for mark in TURN_MARKS:
        text = text.partition(mark)[0]
    return text.strip()
