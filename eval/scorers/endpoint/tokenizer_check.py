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
from eval.scorers.endpoint.routes import Lacking, Listed, Served, read_listed, read_said

log = logging.getLogger(__name__)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Probe.run: what the job returns, or Lacking."""
TEXTS = (
    "The carpenter told the customer that 1,234 boards would arrive on Wednesday, and",
    "Question: what is the capital of France?\nAnswer: the café near the Seine knows that it is",
    "def squares(numbers):\n    # returns their squares, unless they're negative\n    return [",
)
LISTED = 5  # OpenAI's most
CLOSE = 0.5  # mean difference of log-probabilities; bf16 on a server: 0.08, at most 0.5
ALIKE = 4  # characters of the text at temperature 0


def check_echoed(scorer: Echo, ids: list[int], name: str, run: Run) -> None:
    """InputError where the server echoes our token ids as other texts. name: what was given as --tokenizer."""
    served = scorer.route.served
    (row,) = run(scorer.rows([ids]))
    ours, theirs = [str(served.tokenizer.decode([i])) for i in ids], [token for token, _ in row]
    if sum(a.strip() != b.strip() for a, b in zip(ours, theirs, strict=True)) > len(ids) // 10:
        raise InputError(f"{_not_its(served, name)} reads its token ids as {''.join(theirs)[:60]!r}")


def check_asked(served: Served, name: str, run: Run) -> None:
    """InputError where the server counts other tokens in a text, or goes on otherwise from our ids of it."""
    follows = _by_list
    try:
        run(_listed(served, TEXTS[0]))
    except Lacking:
        follows = _by_text
    found = [follows(served, name, text, run) for text in TEXTS]
    if not (known := [alike for alike in found if alike is not None]):
        log.warning("whether --tokenizer %s is that of '%s' cannot be told: be sure of it", name, served.model)
    elif 2 * sum(known) < len(known):
        raise InputError(f"{_not_its(served, name)} goes on otherwise from its token ids than from their text")


def _by_list(served: Served, name: str, text: str, run: Run) -> bool:
    theirs: Listed = run(_listed(served, text))
    ours = [run(_listed(served, ids)) for ids in _ids(served, name, text, theirs.prompt_tokens)]
    return any(_close(theirs.logprobs, listed.logprobs) for listed in ours)


def _by_text(served: Served, name: str, text: str, run: Run) -> bool | None:
    """None where the server says something else each time."""
    (said, count), (again, _) = run(_greedy(served, text)), run(_greedy(served, text))
    variants = _ids(served, name, text, count)
    if said != again or not said.strip():
        return None
    return any(run(_greedy(served, ids))[0][:ALIKE] == said[:ALIKE] for ids in variants)


def _ids(served: Served, name: str, text: str, count: int | None) -> list[list[int]]:
    """Our token ids of the text, with and without special tokens, where they are as many as the server counts."""
    plain = list(served.tokenizer(text, add_special_tokens=False).input_ids)
    bos = served.tokenizer.bos_token_id
    found = [plain, list(served.tokenizer(text).input_ids), *([[bos, *plain]] if bos is not None else [])]
    alike = [ids for k, ids in enumerate(found) if count in (None, len(ids)) and ids not in found[:k]]
    if not alike:
        raise InputError(
            f"{_not_its(served, name)} counts {count} tokens in {text[:30]!r} ... where it makes {len(plain)} of it"
        )
    return alike


def _close(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two lists of the most probable tokens follow the same text."""
    apart = [abs(a[token] - b[token]) for token in a.keys() & b.keys()]
    return 2 * len(apart) > min(len(a), len(b)) and sum(apart) / len(apart) < CLOSE


async def _listed(served: Served, prompt: Any) -> Listed:
    return await served.completions(prompt, lambda a: read_listed(a, chat=False), max_tokens=1, logprobs=LISTED)


async def _greedy(served: Served, prompt: Any) -> tuple[str, int | None]:
    def read(answer: Any) -> tuple[str, int | None]:
        (said,), count = read_said(answer, chat=False, n=1)
        return said.text, count

    return await served.completions(prompt, read, max_tokens=ALIKE, temperature=0.0)


def _not_its(served: Served, name: str) -> str:
    return f"--tokenizer {name} is not that of '{served.model}': the server"
