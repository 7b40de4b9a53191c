"""Padding that no reward model can mistake for a token of a dialogue.

transformers' sequence classification reads the last token that is not config.pad_token_id, in a batch and for a single
dialogue. If that token closes a turn, as the end token does in many tokenizers, it reads the token before. So scoring
pads a batch with a token that none of its dialogues has, and training sets a padding token that ends no dialogue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from eval.errors import InputError
from reward.dialogues import Message, token_ids

log = logging.getLogger(__name__)

DIALOGUE: list[Message] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
"""The closing token of a chat template is read from this dialogue."""


def unused_token(ids: Sequence[Sequence[int]], vocabulary: int, preferred: Sequence[int | None] = ()) -> int | None:
    """A token id from 0 to vocabulary - 1 that occurs in none of the dialogues; the first one in `preferred` if any.

    None if the dialogues contain every token.
    """
    used = {token for one in ids for token in one}
    known = (token for token in chain(preferred, range(vocabulary)) if token is not None and 0 <= token < vocabulary)
    return next((token for token in known if token not in used), None)


@contextmanager
def pad_token_as(model: Any, token: int | None) -> Iterator[None]:
    """Sets the padding token of the model's configuration, or none, within the block."""
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    saved = [(c, getattr(c, "pad_token_id", None)) for c in configs]
    for config in configs:
        config.pad_token_id = token
    try:
        yield
    finally:
        for config, before in saved:
            config.pad_token_id = before


def loading_options(config: Any) -> dict[str, Any]:
    """Options of from_pretrained: they remove a padding token that the model does not have.

    torch makes no embedding with such a padding token.
    """
    text = config.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    return {"pad_token_id": None} if pad is not None and rows is not None and not 0 <= pad < rows else {}


def closing_token(tokenizer: Any) -> int:
    """The last token of a dialogue in the tokenizer's chat template."""
    return token_ids(tokenizer, DIALOGUE)[-1]


def set_pad_token(tokenizer: Any, config: Any, model: str, requested: str | None = None) -> bool:
    """Sets a padding token with which the last token of a dialogue is trained, and pads on the right.

    It is the requested token, else the tokenizer's own, else a special token that no dialogue has. Padding stands on
    the right, since no model counts its positions from there.

    Args:
        config: the model's configuration.

    Returns:
        Whether the padding token changed.

    Raises:
        InputError: the requested token cannot be used, or the closing token is the only one left.
    """
    tokenizer.padding_side = "right"
    before = tokenizer.pad_token
    closing, rows = closing_token(tokenizer), getattr(config.get_text_config(), "vocab_size", len(tokenizer))
    if requested is not None:
        token = tokenizer.get_vocab().get(requested)
        if token is None or token == closing or token >= rows:
            reason = "ends every dialogue" if token == closing else "is not in the vocabulary of the model"
            raise InputError(f"pad_token {requested!r} {reason} {model}; leave pad_token out or give another token")
    elif tokenizer.pad_token_id not in (None, closing) and tokenizer.pad_token_id < rows:
        token = tokenizer.pad_token_id
    else:
        token = _special_token(tokenizer, rows)
        if token is None:
            reason = "ends its dialogues" if tokenizer.pad_token_id == closing else "is not in the model's vocabulary"
            raise InputError(
                f"the tokenizer of {model} pads with {before!r}, which {reason}, and has no other special token; the "
                "last token of a dialogue could not be trained: add a pad_token to the tokenizer, resize the model's "
                "embeddings, and save both"
            )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    if changed := tokenizer.pad_token != before:
        log.info("dialogues are padded with %r, not with %r", tokenizer.pad_token, before)
    return changed


def _special_token(tokenizer: Any, rows: int) -> int | None:
    """A special token that no dialogue has; one named as a padding token comes first."""
    used = {*token_ids(tokenizer, DIALOGUE), tokenizer.eos_token_id}
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    free = [i for i in special if i not in used and i < rows]
    return min(free, key=lambda i: ("pad" not in special[i].lower(), i != tokenizer.unk_token_id, i), default=None)
