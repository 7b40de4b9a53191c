"""Checks that --tokenizer is the served model's own. Another tokenizer's ids would be other texts, and other numbers.

With echo the server shows how it reads the ids. Without it, the same texts are sent once as text and once as token ids.
The counts of tokens must agree, and so must the continuation: the most probable next tokens, or, where the server does
not list them, the text at temperature 0. The server may add a BOS to text where the tokenizer does not, or the reverse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from eval.errors import InputError
from eval.scorers.endpoint.exact import Echo
from eval.scorers.endpoint.routes import ServedModel, TopTokens, UnsupportedError, read_sampled, read_top_tokens

log = logging.getLogger(__name__)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Probe.run: returns the job's result or raises UnsupportedError."""
TEXTS = (
    "The carpenter told the customer that 1,234 boards would arrive on Wednesday, and",
    "Question: what is the capital of France?\nAnswer: the café near the Seine knows that it is",
    "def squares(numbers):\n    # returns their squares, unless they're negative\n    return [",
)
TOP_LOGPROBS = 5  # OpenAI's maximum
MAX_MEAN_DIFFERENCE = 0.5  # of log-probabilities (nats); bf16 on a server: 0.08, at most 0.5
GREEDY_LENGTH = 4  # tokens to generate at temperature 0, and characters of them to compare


def check_by_echo(scorer: Echo, ids: list[int], name: str, run: Run) -> None:
    """Checks the tokenizer by the server's echo of token ids.

    Args:
        scorer: The echo scorer.
        ids: Token ids to send.
        name: The value of --tokenizer.
        run: Runs a request.

    Raises:
        InputError: The server echoes more than a tenth of the ids as other texts.
    """
    served = scorer.route.served
    (row,) = run(scorer.rows([ids]))
    local_tokens, server_tokens = [str(served.tokenizer.decode([i])) for i in ids], [token for token, _ in row]
    if sum(a.strip() != b.strip() for a, b in zip(local_tokens, server_tokens, strict=True)) > len(ids) // 10:
        raise InputError(f"{_mismatch(served, name)} reads its token ids as {''.join(server_tokens)[:60]!r}")


def check_by_completions(served: ServedModel, name: str, run: Run) -> None:
    """Checks the tokenizer by completions of the same texts, sent as text and as token ids.

    Args:
        served: The model on its server.
        name: The value of --tokenizer.
        run: Runs a request.

    Raises:
        InputError: The server counts other tokens in a text, or continues the token ids differently.
    """
    compare = _same_top_tokens
    try:
        run(_request_top_tokens(served, TEXTS[0]))
    except UnsupportedError:
        compare = _same_greedy_text
    matches = [compare(served, name, text, run) for text in TEXTS]
    if not (decided := [match for match in matches if match is not None]):
        log.warning(
            "--tokenizer %s may not be that of '%s', the server gives no way to check; make sure that it is",
            name,
            served.model,
        )
    elif 2 * sum(decided) < len(decided):
        raise InputError(f"{_mismatch(served, name)} goes on otherwise from its token ids than from their text")


def _same_top_tokens(served: ServedModel, name: str, text: str, run: Run) -> bool:
    """Whether the most probable tokens after the text and after its ids agree."""
    by_text: TopTokens = run(_request_top_tokens(served, text))
    by_ids = [run(_request_top_tokens(served, ids)) for ids in _token_ids(served, name, text, by_text.prompt_tokens)]
    return any(_close(by_text.logprobs, top_tokens.logprobs) for top_tokens in by_ids)


def _same_greedy_text(served: ServedModel, name: str, text: str, run: Run) -> bool | None:
    """Whether the greedy texts after the text and after its ids agree; None if the server's greedy text varies."""
    (greedy, count), (repeated, _) = run(_request_greedy(served, text)), run(_request_greedy(served, text))
    variants = _token_ids(served, name, text, count)
    if greedy != repeated or not greedy.strip():
        return None
    return any(run(_request_greedy(served, ids))[0][:GREEDY_LENGTH] == greedy[:GREEDY_LENGTH] for ids in variants)


def _token_ids(served: ServedModel, name: str, text: str, count: int | None) -> list[list[int]]:
    """The tokenizer's ids of the text, with and without special tokens, that have as many tokens as the server counts.

    Raises:
        InputError: None has as many.
    """
    plain = list(served.tokenizer(text, add_special_tokens=False).input_ids)
    bos = served.tokenizer.bos_token_id
    variants = [plain, list(served.tokenizer(text).input_ids), *([[bos, *plain]] if bos is not None else [])]
    fitting = [ids for k, ids in enumerate(variants) if count in (None, len(ids)) and ids not in variants[:k]]
    if not fitting:
        raise InputError(
            f"{_mismatch(served, name)} counts {count} tokens in {text[:30]!r} ... where it makes {len(plain)} of it"
        )
    return fitting


def _close(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two lists of the most probable tokens fit the same text."""
    differences = [abs(a[token] - b[token]) for token in a.keys() & b.keys()]
    return 2 * len(differences) > min(len(a), len(b)) and sum(differences) / len(differences) < MAX_MEAN_DIFFERENCE


async def _request_top_tokens(served: ServedModel, prompt: Any) -> TopTokens:
    return await served.completions(
        prompt, lambda a: read_top_tokens(a, chat=False), max_tokens=1, logprobs=TOP_LOGPROBS
    )


async def _request_greedy(served: ServedModel, prompt: Any) -> tuple[str, int | None]:
    def read(answer: Any) -> tuple[str, int | None]:
        (sampled,), count = read_sampled(answer, chat=False, n=1)
        return sampled.text, count

    return await served.completions(prompt, read, max_tokens=GREEDY_LENGTH, temperature=0.0)


def _mismatch(served: ServedModel, name: str) -> str:
    """The beginning of the error message."""
    return f"--tokenizer {name} is not that of '{served.model}': the server"
