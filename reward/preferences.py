"""Preference pairs: reads them from all sources, fits them to the model's length, and splits them by prompt.

Rows that are not pairs are counted by reason and reported, never dropped silently. reward.formats has the known forms,
reward.sources the places that pairs are read from.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from eval.errors import InputError
from reward.dialogues import Message, Pair, all_token_ids, cut_by_turns, prefix_ids
from reward.formats import KNOWN_FORMS, LABELS, InvalidPairError, has_known_form, parse_pair
from reward.sources import HubData, LocalFile, parse_sources, preference_files

__all__ = [
    "Preferences", "check_share", "fit_pairs", "in_share", "preference_files", "read_preferences", "split_by_prompt",
]  # fmt: skip

log = logging.getLogger(__name__)
OVER_LONG = ("cut", "refuse")
TOKENISED_TOGETHER = 1024
"""Dialogues per call of the tokenizer."""


@dataclass
class Preferences:
    """Pairs and how they were read.

    unreadable: rows that are not pairs, counted by reason. identity: one entry of each source for the records,
    "FILE sha256:..." or "OWNER/NAME@COMMIT:SUBSET:SPLIT", then the label that decides if rows have two.
    """

    pairs: list[Pair]
    unreadable: dict[str, int]
    identity: list[str]
    by_subset: dict[str, int] = field(default_factory=dict)


def read_preferences(preferences: list[str] | None, data_dir: str | None, label: str = "better") -> Preferences:
    """Reads all pairs, in the order of the sources.

    Args:
        preferences: sources as --preferences names them; None: data_dir/preferences.
        label: which label of PKU-SafeRLHF decides: "better" (more helpful) or "safer" (more harmless).

    Raises:
        InputError: a source does not exist, is empty, cannot be read or has columns of no known form; or no pair is
            left.
    """
    if label not in LABELS:
        raise InputError(f"the label of preference data must be {' or '.join(LABELS)}, not '{label}'")
    sources = parse_sources(preferences, data_dir)
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    identity = []
    for source in sources:
        source_pairs, unreadable = _read_source(source, label)
        pairs += source_pairs
        reasons += unreadable
        identity.append(source.identity())
    for reason, n in reasons.most_common():
        log.warning("%d rows of preference data left out: %s", n, reason)
    if not pairs:
        names = ", ".join(source.name for source in sources)
        raise InputError(f"no usable preference pair in {names}: {_counted(reasons)}")
    by_subset = Counter(p.subset for p in pairs)
    return Preferences(pairs, dict(reasons), [*identity, f"label {label}"], dict(by_subset))


def _read_source(source: LocalFile | HubData, label: str) -> tuple[list[Pair], Counter[str]]:
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    columns: dict[str, None] = {}
    form_known = False
    for where, row in tqdm(source.rows(), desc=f"reading {source.subset}", unit="row", disable=None, leave=False):
        if not form_known:
            form_known = has_known_form(row)
            columns |= dict.fromkeys(map(str, row)) if isinstance(row, dict) else {}
        try:
            pairs.append(parse_pair(row, source.subset, where, label))
        except InvalidPairError as reason:
            reasons[str(reason)] += 1
    if not pairs and not reasons:
        raise InputError(f"preference data {source.name} is empty; it needs {KNOWN_FORMS}")
    if not form_known:
        raise InputError(
            f"preference data {source.name} has the columns {', '.join(columns) or '(none)'}; it needs {KNOWN_FORMS}"
        )
    return pairs, reasons


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common())


def fit_pairs(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int | None, over_long: str = "cut"
) -> tuple[list[Pair], dict[str, int]]:
    """Selects or cuts pairs so that both dialogues have at most max_length tokens.

    Args:
        max_length: None: every pair fits.
        over_long: "cut" removes a prompt's oldest turns, as few as needed and the same for both answers (Pair.was_cut);
            "refuse" removes the pair.

    Returns:
        (the pairs that fit, the number of removed pairs by reason).

    Raises:
        InputError: no pair is left.
    """
    if over_long not in OVER_LONG:
        raise InputError(f"over_long must be {' or '.join(OVER_LONG)}, not '{over_long}'")
    if max_length is None:
        return list(pairs), {}
    kept: list[Pair] = []
    left_out: Counter[str] = Counter()
    lengths = _lengths(pairs, tokenizer)
    for pair, (chosen, rejected) in zip(pairs, lengths, strict=True):
        if max(chosen, rejected) <= max_length:
            kept.append(pair)
        elif over_long == "refuse":
            left_out[f"longer than {max_length} tokens"] += 1
        elif (prompt := _cut_prompt(pair, tokenizer, max_length, chosen >= rejected)) is not None:
            ids = pair.prompt_ids or prefix_ids(pair.prompt)
            kept.append(dataclasses.replace(pair, prompt=prompt, prompt_ids=ids))
        else:
            left_out[f"longer than {max_length} tokens in the last turn and answer alone"] += 1
    for reason, n in left_out.items():
        log.warning("%d of %d pairs left out: %s", n, len(pairs), reason)
    if cut := sum(p.was_cut for p in kept):
        log.info("%d of %d pairs cut from the left to %d tokens", cut, len(pairs), max_length)
    if not kept:
        raise InputError(f"no pair has at most {max_length} tokens; raise max_length ({_counted(left_out)})")
    return kept, dict(left_out)


def _cut_prompt(pair: Pair, tokenizer: Any, max_length: int, chosen_is_longer: bool) -> list[Message] | None:
    """Cuts the prompt so that both dialogues fit, by the longer one; None if its last turn alone does not fit."""
    longer, other = (pair.chosen, pair.rejected) if chosen_is_longer else (pair.rejected, pair.chosen)
    cut = cut_by_turns(pair.prompt + longer, tokenizer, max_length)
    if cut is not None:  # the other can be a token longer if it is cut at another place
        cut = cut_by_turns(cut[:-1] + other, tokenizer, max_length)
    return cut[:-1] if cut is not None else None


def _lengths(pairs: Sequence[Pair], tokenizer: Any) -> list[tuple[int, int]]:
    """(tokens with chosen, tokens with rejected) of each pair."""
    lengths: list[tuple[int, int]] = []
    with tqdm(total=len(pairs), desc="measuring lengths", unit="pair", disable=None, leave=False) as bar:
        for start in range(0, len(pairs), TOKENISED_TOGETHER // 2):
            chunk = pairs[start : start + TOKENISED_TOGETHER // 2]
            dialogues = [p.prompt + answer for p in chunk for answer in (p.chosen, p.rejected)]
            ids = all_token_ids(tokenizer, dialogues)
            lengths += [(len(ids[i]), len(ids[i + 1])) for i in range(0, len(ids), 2)]
            bar.update(len(chunk))
    return lengths


def split_by_prompt(
    pairs: Sequence[Pair], held_out: float, seed: int, max_pairs: int | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Splits the pairs by prompt; holds out a `held_out` share of each subset's pairs.

    No prompt is on both sides, neither whole nor cut, up to case and white space. Nor are a prompt and its
    continuation: such pairs are held out together or not at all. The held-out pairs are the same for every max_pairs,
    and the training pairs of a smaller max_pairs are the first ones of a larger one.

    Args:
        max_pairs: the number of training pairs; None: all.

    Returns:
        (training pairs in random order, held-out pairs in their original order).

    Raises:
        InputError: a side would be empty.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out must be between 0 and 1, not {held_out}")
    rng = random.Random(seed)
    by_subset: dict[str, list[list[int]]] = defaultdict(list)
    for group in _connected(pairs):
        by_subset[pairs[group[0]].subset].append(group)
    chosen: set[int] = set()
    for subset in sorted(by_subset):
        groups = by_subset[subset]
        remaining = round(held_out * sum(map(len, groups)))
        rng.shuffle(groups)
        for group in groups:
            if len(group) <= remaining:
                chosen.update(group)
                remaining -= len(group)
    training = [i for i in range(len(pairs)) if i not in chosen]
    if not chosen or not training:
        raise InputError(
            f"held_out {held_out} leaves {len(chosen)} of {len(pairs)} pairs held out; both sides need at least one"
        )
    rng.shuffle(training)
    return [pairs[i] for i in training[:max_pairs]], [pairs[i] for i in sorted(chosen)]


def in_share(pairs: Sequence[Pair], share: Sequence[float]) -> list[Pair]:
    """The pairs whose prompts lie in [low, high) of 0 to 1.

    A prompt's place is the hash of its start, up to its first human message, as a number: the same in every run and
    every file. Runs on disjoint shares have no prompt in common, nor a prompt and its continuation.

    Raises:
        InputError: the share is not such a range, or contains no pair.
    """
    low, high = check_share(share)
    chosen = [p for p in pairs if low <= int(p.origin, 16) / 16 ** len(p.origin) < high]
    if not chosen:
        raise InputError(f"prompt_share {low:g} {high:g} has none of the {len(pairs)} pairs; give a wider one")
    if len(chosen) < len(pairs):
        log.info("%d of %d pairs are in prompt_share %g to %g", len(chosen), len(pairs), low, high)
    return chosen


def check_share(share: Sequence[float]) -> tuple[float, float]:
    """prompt_share as (low, high). Raises InputError for anything but 0 <= low < high <= 1."""
    if len(share) != 2 or not 0 <= share[0] < share[1] <= 1:
        values = " ".join(f"{value:g}" for value in share)
        raise InputError(f"prompt_share must be two numbers, 0 <= low < high <= 1, not '{values}'; 0 0.4 for example")
    return share[0], share[1]


def _connected(pairs: Sequence[Pair]) -> list[list[int]]:
    """Groups the indices of pairs that share a prompt, whole or cut, or of which one prompt continues the other."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    ids = [(p.prompt_ids or prefix_ids(p.prompt), prefix_ids(p.prompt)) for p in pairs]
    first: dict[str, int] = {}
    for i, (whole, cut) in enumerate(ids):
        for key in {whole[-1], cut[-1]}:
            parent[root(i)] = root(first.setdefault(key, i))
    for i, (whole, cut) in enumerate(ids):
        for key in {*whole, *cut} & first.keys():
            parent[root(i)] = root(first[key])
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(pairs)):
        groups[root(i)].append(i)
    return list(groups.values())
