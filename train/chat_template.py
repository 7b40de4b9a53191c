"""Checks, before any training, how a policy's chat template begins and ends an answer, and which tokens end one.

A policy learns to stop from the token that closes an answer in its template, and sampling stops at end tokens. If the
closing token is not an end token, no answer ever ends. A base model with ChatML is an example: its template writes
<|im_end|>, its end token is <|endoftext|>. The closing token then becomes an end token, in the tokenizer and in every
saved model; TRL's trainers take end tokens from the tokenizer and the generation config. What cannot be set is refused.

The checks let the template write sample dialogues and judge the output. reward.train needs none of this: it reads whole
dialogues, and neither samples answers nor teaches them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from eval.errors import InputError
from eval.models.checkpoints import check_model, load_tokenizer
from reward.dialogues import Message
from reward.functions import end_token_ids
from reward.model import check_chat_template

log = logging.getLogger(__name__)

QUESTION, ANSWER = "What colour is grass?", "Green"
_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_USER: Message = {"role": "user", "content": QUESTION}
_ASSISTANT: Message = {"role": "assistant", "content": ANSWER}
PROMPTS: tuple[list[Message], ...] = ([_USER], [_USER, _ASSISTANT, _USER], [_SYSTEM, _USER])
"""Prompts that the template writes an answer to. One that it refuses is skipped: data of that kind cannot be used."""
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Errors that a template raises, itself or in an expression."""


class EndTokens(NamedTuple):
    """The tokens that end an answer of the policy. added: the template's closing token if it was not one of them."""

    ids: list[int]
    added: str | None

    def policy_fields(self, tokenizer: Any) -> dict[str, Any]:
        """Their fields in policy.json."""
        return {"end_tokens": tokenizer.convert_ids_to_tokens(self.ids), "end_token_added": self.added}

    def settings_fields(self) -> dict[str, str]:
        """Their fields in settings.json; empty unless an end token was added, since an earlier version added none."""
        return {} if self.added is None else {"end_token_added": self.added}

    def save_to(self, model: Any) -> None:
        """Sets them in the model's generation config, which is saved with the model."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.generation_config.eos_token_id = self.ids if len(self.ids) > 1 else self.ids[0]


class Turn(NamedTuple):
    """An answer as the template writes it: the prompt without and with the generation prompt, and the dialogue."""

    bare: str
    prompt: str
    dialogue: str

    @property
    def answer_at(self) -> int:
        """Index of the answer's text in the dialogue; -1 if the template does not write it."""
        return self.dialogue.rfind(ANSWER)

    @property
    def opened(self) -> str:
        """The dialogue up to the end of the answer's text."""
        return self.dialogue[: self.answer_at + len(ANSWER)]


def policy_tokenizer(
    model: str, revision: str | None, supervised: bool, template_options: Mapping[str, Any] | None = None
) -> tuple[Any, EndTokens]:
    """The tokenizer of a policy that is to be trained, and the tokens that end its answers.

    Args:
        model: folder or hub id of the policy, with its revision.
        supervised: whether training teaches answers (train.sft), instead of only sampling them.
        template_options: chat_template_kwargs of TRL's configuration.

    Returns:
        The tokenizer and the end tokens. If the template's closing token was not an end token, it is now the
        tokenizer's.

    Raises:
        InputError: there is no chat template, or with it no answer can end, or begin correctly.
    """
    tokenizer = load_tokenizer(model, revision)
    check_chat_template(tokenizer, model)
    turns = _render_turns(tokenizer, model, template_options or {})
    for turn in turns:
        _check_beginning(turn, tokenizer, model, supervised)
    end_ids = end_token_ids(model, revision, tokenizer)
    next_turn_ends = not supervised and any(_next_turn_ends_answer(turn, tokenizer, end_ids) for turn in turns)
    closing_tokens = {_closing_token(turn, tokenizer, model, end_ids, next_turn_ends) for turn in turns}
    closing = sorted(token for token in closing_tokens if token is not None)
    if not closing:
        return tokenizer, EndTokens(end_ids, None)
    if len(closing) > 1:
        raise InputError(
            f"the chat template of {model} closes answers with {' or '.join(map(repr, closing))}, none of which is an "
            "end token; save a template with the tokenizer that closes all answers with one token"
        )
    (token,) = closing
    _make_end_token(token, tokenizer, model, revision)
    if _render_turns(tokenizer, model, template_options or {}) != turns:
        raise InputError(
            f"the chat template of {model} closes an answer with {token!r}, which is no end token, and writes another "
            "one elsewhere by the name eos_token; write that one out in the template, and set the tokenizer's "
            f"eos_token to {token!r}"
        )
    before = tokenizer.convert_ids_to_tokens(end_ids)
    log.info(
        "the chat template of %s closes an answer with %s, and its end tokens are %s: %s is made one", model, token,
        ", ".join(before) or "none", token,
    )  # fmt: skip
    return tokenizer, EndTokens(end_token_ids(model, revision, tokenizer), token)


def _render_turns(tokenizer: Any, model: str, options: Mapping[str, Any]) -> list[Turn]:
    """PROMPTS with an answer, as far as the template writes them. Raises InputError if it writes none."""
    turns, errors = [], []
    for messages in PROMPTS:
        try:
            bare = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
            dialogue = tokenizer.apply_chat_template([*messages, _ASSISTANT], tokenize=False, **options)
        except TEMPLATE_ERRORS as error:
            errors.append(error)
        else:
            turns.append(Turn(bare, prompt, dialogue))
    if not turns:
        raise InputError(
            f"the chat template of {model} refuses a user's message with an answer ({errors[0]}); save a template with "
            "the tokenizer that writes one"
        )
    return turns


def _check_beginning(turn: Turn, tokenizer: Any, model: str, supervised: bool) -> None:
    """Raises InputError if sampling would start an answer after another text than the one in a written dialogue."""
    if turn.answer_at < 0:
        raise InputError(
            f"the chat template of {model} does not write the text of an answer ({ANSWER!r}) as it is; save a template "
            "with the tokenizer that does"
        )
    if not turn.dialogue.startswith(turn.prompt):
        sampled, written = (text.rpartition(QUESTION)[2] for text in (turn.prompt, turn.dialogue[: turn.answer_at]))
        raise InputError(
            f"the chat template of {model} has the generation prompt {sampled!r}, and in a dialogue an answer stands "
            f"after {written!r}: the policy would be sampled after another text than it learns; save a template with "
            "the tokenizer whose generation prompt is a prefix of the dialogue"
        )
    header = turn.dialogue[len(turn.prompt) : turn.answer_at]
    if turn.prompt == turn.bare and header.strip():
        raise InputError(
            f"the chat template of {model} ignores add_generation_prompt, so that the policy would have to write "
            f"{header!r} itself; save a template with the tokenizer that writes it where add_generation_prompt is set"
        )
    if supervised and (split := _split_at_divergence(tokenizer, turn.prompt, turn.dialogue)[0]):
        raise InputError(
            f"the chat template of {model} ends a prompt with {tokenizer.decode(split)!r}, which in the dialogue is a "
            "part of another token, so that answers would be taught after other tokens than they are sampled after; "
            "save a template with the tokenizer whose generation prompt has no space, or its whole line break, at its "
            "end"
        )


def _next_turn_ends_answer(turn: Turn, tokenizer: Any, end_ids: Sequence[int]) -> bool:
    """Whether an end token stands between an answer and the user's next text, like GLM-4's <|user|>."""
    first = turn.dialogue.find(ANSWER) + len(ANSWER)
    following = turn.dialogue.find(QUESTION, first)
    if following < 0:  # the dialogue has one turn
        return False
    _, after = _split_at_divergence(tokenizer, turn.dialogue[:first], turn.dialogue[:following])
    return not set(after).isdisjoint(end_ids)


def _closing_token(turn: Turn, tokenizer: Any, model: str, end_ids: Sequence[int], next_turn_ends: bool) -> str | None:
    """The token that closes the answer and must become an end token; None if an end token is already there.

    It is the first special token after the answer's text. White space may surround it.
    """
    _, after = _split_at_divergence(tokenizer, turn.opened, turn.dialogue)
    if not set(after).isdisjoint(end_ids):
        return None
    added = tokenizer.added_tokens_decoder
    for token in after:
        if token in added and not added[token].content.isspace():
            return added[token].content
    if next_turn_ends:
        return None
    raise InputError(
        f"the chat template of {model} closes an answer with {turn.dialogue[len(turn.opened) :]!r}, where there is no "
        "end token and no special token to make one of, so that no answer would ever end; save a template with the "
        "tokenizer that closes an answer with eos_token, as configs/ladders/human_assistant.jinja does"
    )


def _make_end_token(token: str, tokenizer: Any, model: str, revision: str | None) -> None:
    """Makes the token the tokenizer's end token, which decoding then leaves out.

    Raises InputError if the model does not have the token.
    """
    from tokenizers import AddedToken

    number = tokenizer.convert_tokens_to_ids(token)
    rows = getattr(check_model(model, revision).get_text_config(), "vocab_size", None)
    if rows is not None and number >= rows:
        raise InputError(
            f"the chat template of {model} closes an answer with {token!r}, token {number}, and the model has tokens 0 "
            f"to {rows - 1} only, so that no answer would ever end; give a folder with the model's own tokenizer"
        )
    tokenizer.add_special_tokens({"eos_token": AddedToken(token, special=True, normalized=False)})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = token


def _split_at_divergence(tokenizer: Any, beginning: str, text: str) -> tuple[list[int], list[int]]:
    """(tokens of `beginning` that `text` does not have, tokens of `text` after their common prefix)."""
    first, whole = (tokenizer(t, add_special_tokens=False).input_ids for t in (beginning, text))
    shared = _shared_prefix_length(first, whole)
    return first[shared:], whole[shared:]


def _shared_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
