"""Whether --tokenizer is the served model's own: token ids of another one are other texts there, and other numbers.

By echo the server says what it reads; without, the same texts are asked once as text and once as our token ids: the
counts of tokens must be the same, and what follows too, by the most probable next tokens or, where they are not listed,
by the text at temperature 0. A server that adds a BOS to text where the tokenizer does not, or the other way round, is
allowed for.
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
"""Probe.run: what the job returns, or Lacking."""
TEXTS = (
    "The carpenter told the customer that 1,234 boards would arrive on Wednesday, and",
    "Question: what is the capital of France?\nAnswer: the café near the Seine knows that it is",
    "def squares(numbers):\n    # returns their squares, unless they're negative\n    return [",
)
TOP_LOGPROBS = 5  # OpenAI's most
MAX_MEAN_DIFFERENCE = 0.5  # mean difference of log-probabilities; bf16 on a server: 0.08, at most 0.5
GREEDY_LENGTH = 4  # characters of the text at temperature 0


def check_by_echo(scorer: Echo, ids: list[int], name: str, run: Run) -> None:
    """InputError where the server echoes our token ids as other texts. name: what was given as --tokenizer."""
    served = scorer.route.served
    (row,) = run(scorer.rows([ids]))
    local_tokens, server_tokens = [str(served.tokenizer.decode([i])) for i in ids], [token for token, _ in row]
    if sum(a.strip() != b.strip() for a, b in zip(local_tokens, server_tokens, strict=True)) > len(ids) // 10:
        raise InputError(f"{_mismatch(served, name)} reads its token ids as {''.join(server_tokens)[:60]!r}")


def check_by_completions(served: ServedModel, name: str, run: Run) -> None:
    """InputError where the server counts other tokens in a text, or goes on otherwise from our ids of it."""
    compare = _same_top_tokens
    try:
        run(_request_top_tokens(served, TEXTS[0]))
    except UnsupportedError:
        compare = _same_greedy_text
    matches = [compare(served, name, text, run) for text in TEXTS]
    if not (decided := [match for match in matches if match is not None]):
        log.warning("whether --tokenizer %s is that of '%s' cannot be told: be sure of it", name, served.model)
    elif 2 * sum(decided) < len(decided):
        raise InputError(f"{_mismatch(served, name)} goes on otherwise from its token ids than from their text")


def _same_top_tokens(served: ServedModel, name: str, text: str, run: Run) -> bool:
    by_text: TopTokens = run(_request_top_tokens(served, text))
    by_ids = [run(_request_top_tokens(served, ids)) for ids in _token_ids(served, name, text, by_text.prompt_tokens)]
    return any(_close(by_text.logprobs, top_tokens.logprobs) for top_tokens in by_ids)


def _same_greedy_text(served: ServedModel, name: str, text: str, run: Run) -> bool | None:
    """None where the server says something else each time."""
    (greedy, count), (repeated, _) = run(_request_greedy(served, text)), run(_request_greedy(served, text))
    variants = _token_ids(served, name, text, count)
    if greedy != repeated or not greedy.strip():
        return None
    return any(run(_request_greedy(served, ids))[0][:GREEDY_LENGTH] == greedy[:GREEDY_LENGTH] for ids in variants)


def _token_ids(served: ServedModel, name: str, text: str, count: int | None) -> list[list[int]]:
    """Our token ids of the text, with and without special tokens, where they are as many as the server counts."""
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
    """Whether two lists of the most probable tokens follow the same text."""
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
    return f"--tokenizer {name} is not that of '{served.model}': the server"
