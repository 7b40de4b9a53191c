"""Sampling by the fused decoder. Distinct beginnings are encoded once, and finished dialogues leave the batch. Keys and
values are kept for the question that follows the reasoning.

A sample must not depend on the other samples of its batch. So matrix products always run on ROWS rows, since the order
in which oneDNN sums depends on their number, and attention runs on a row's own keys by position (in torch on SLOTS at a
time). A row's result is then the same, bit for bit, whatever the other rows are (a test checks this). Each row is drawn
with its own uniform numbers.
Shapes: R rows, T slots, D head, H hidden, V vocabulary, W any other width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eval.scorers.local.fused import ROWS, SLICE, FusedDecoder
from eval.scorers.local.portable import RequestedTokens, TokenLogprobs
from eval.scorers.local.prefix_tree import Pack, pack, shared_length, slices

SMALL_BLOCK = 16  # nodes: each branch of the contexts' tree begins a block, so small blocks need little padding
PART = 256  # tokens of the vocabulary whose probabilities are summed together in `draw`


class Sampler:
    """Samples for at most ROWS dialogues.

    Keys and values are in slots by position: (rows, key heads, T, D) for each layer.
    """

    def __init__(self, decoder: FusedDecoder, contexts: Sequence[tuple[int, ...]], new_tokens: int) -> None:
        self.decoder = decoder
        self.tokens: list[list[int]] = [list(c) for c in contexts]  # tokens of each row
        self.origin = list(range(len(contexts)))  # index of each row's context
        self.keys, self.values = decoder.slots(len(contexts), max(map(len, contexts)) + new_tokens)

    def encode(self) -> Tensor:
        """Encodes the contexts, each distinct beginning once. Returns the normed hidden states at their ends (R, H)."""
        distinct = list(dict.fromkeys(tuple(t) for t in self.tokens))
        rows = {c: [r for r, t in enumerate(self.tokens) if tuple(t) == c] for c in distinct}
        hidden: dict[tuple[int, ...], Tensor] = {}
        kv, d = self.decoder.heads.keys, self.decoder.heads.size
        path: list[Tensor] = []
        for piece in slices(distinct, SLICE, SMALL_BLOCK, aligned=True):
            contexts = [(distinct[i], nodes) for i, nodes in zip(piece.sequences, piece.node_paths, strict=True)]

            def store(number: int, pool_PW: Tensor, contexts: list = contexts) -> None:
                for context, nodes in contexts:
                    pairs = pool_PW[torch.from_numpy(nodes)].view(len(nodes), 2, kv, d).permute(1, 2, 0, 3)
                    for row in rows[context]:
                        self.keys[number][row, :, : len(nodes)] = pairs[0]
                        self.values[number][row, :, : len(nodes)] = pairs[1]

            hidden_SH, path = self.decoder.run(piece, path, store, chunk_rows=ROWS)
            hidden |= {context: h for (context, _), h in zip(contexts, hidden_SH, strict=True)}
        return torch.stack([hidden[tuple(t)] for t in self.tokens])

    def sample(
        self, seeds: Sequence[int], new_tokens: int, is_finished: Callable[[list[int]], bool]
    ) -> Iterator[tuple[int, list[int]]]:
        """Samples all rows at temperature 1.

        Args:
            seeds: A seed for each context.
            new_tokens: The most new tokens.
            is_finished: Whether a sample ends with these new tokens.

        Yields:
            (index of the context, its new tokens), as they end.
        """
        uniform_RT = np.stack([np.random.default_rng(s).random(new_tokens) for s in seeds])
        lengths = [len(t) for t in self.tokens]
        output = self.decoder.output()
        hidden_RH = self.encode()
        running = len(self.tokens)
        while running:
            steps = [len(self.tokens[r]) - lengths[self.origin[r]] for r in range(running)]
            u_R = torch.tensor([uniform_RT[self.origin[r], t] for r, t in enumerate(steps)], dtype=torch.float32)
            padded_RH = torch.nn.functional.pad(hidden_RH, (0, 0, 0, -running % ROWS)).to(self.decoder.dtype)
            next_tokens = draw(output(padded_RH)[:running].float(), u_R).tolist()
            for row in reversed(range(running)):
                self.tokens[row].append(next_tokens[row])
                new = self.tokens[row][lengths[self.origin[row]] :]
                if len(new) == new_tokens or is_finished(new):
                    yield self.origin[row], new
                    running -= 1
                    self._swap(row, running)
            if running:
                starts_R = torch.tensor([len(t) - 1 for t in self.tokens[:running]])
                last_R1 = torch.tensor([t[-1:] for t in self.tokens[:running]])
                hidden_RH = self.decoder.step(last_R1, starts_R, self.keys, self.values)[:, 0]

    def _swap(self, a: int, b: int) -> None:
        """Exchanges two rows."""
        if a == b:
            return
        for slots in (*self.keys, *self.values):
            slots[[a, b]] = slots[[b, a]]
        self.tokens[a], self.tokens[b] = self.tokens[b], self.tokens[a]
        self.origin[a], self.origin[b] = self.origin[b], self.origin[a]

    def logprobs(self, requested: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
        """Yields log-probabilities of requested sequences that extend a sampled dialogue.

        Only sequences of which a row holds more than half are computed, from that point on; the caller computes the
        others.
        """
        matches = sorted(self._matches(requested), key=lambda m: len(m[2].tokens_N))
        start = 0
        while start < len(matches):
            r = 1
            while start + r < len(matches) and (r + 1) * len(matches[start + r][2].tokens_N) <= batch_tokens:
                r += 1
            group = matches[start : start + r]
            start += r
            hidden_RSH = self._extend(group)
            ends = [(row, int(last)) for row, (_, _, tree, _) in enumerate(group) for last in tree.last_S]
            ended = [sequences[i] for _, _, tree, sequences in group for i in tree.sequences]
            hidden_EH = torch.stack([hidden_RSH[row, last] for row, last in ends])
            yield self.decoder.token_logprobs(hidden_EH, ended, requested)

    def _extend(self, group: list[tuple[int, int, Pack, list[tuple[int, ...]]]]) -> Tensor:
        """Hidden states (R, S, H) of the trees that continue the rows' first slots."""
        s = max(len(tree.tokens_N) for _, _, tree, _ in group)
        tokens_RS, depth_RS = (torch.zeros(len(group), s, dtype=torch.long) for _ in range(2))
        visible_RSS = torch.eye(s, dtype=torch.bool).repeat(len(group), 1, 1)
        for r, (_, start, tree, _) in enumerate(group):
            n = len(tree.tokens_N)
            tokens_RS[r, :n] = torch.from_numpy(tree.tokens_N)
            depth_RS[r, :n] = torch.from_numpy(tree.depth_N) + start
            visible_RSS[r, :n, :n] = torch.from_numpy(tree.ancestors_NN())
        rows, starts_R = (torch.tensor([m[k] for m in group]) for k in (0, 1))
        return self.decoder.step(tokens_RS, starts_R, self.keys, self.values, rows, (depth_RS, visible_RSS))

    def _matches(self, requested: RequestedTokens) -> Iterator[tuple[int, int, Pack, list[tuple[int, ...]]]]:
        """Matches the requested sequences to rows.

        Yields:
            (row, how many of its slots are used, the tree of what follows, the sequences that end in the tree).
        """
        rows = {tuple(t): row for row, t in enumerate(self.tokens)}
        contexts = sorted(rows)
        by_context: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}
        for sequence in requested:
            position = bisect_left(contexts, sequence)
            best = max(contexts[max(0, position - 1) : position + 1], key=lambda k: shared_length(k, sequence))
            # the last sampled token was never fed to the decoder, and at least one token must be computed
            start = min(shared_length(best, sequence), len(best) - 1, len(sequence) - 1)
            if start > len(sequence) // 2:
                by_context.setdefault(best, []).append((sequence, start))
        for tokens, continuations in by_context.items():
            start, sequences = min(n for _, n in continuations), [sequence for sequence, _ in continuations]
            (tree,) = pack([sequence[start:] for sequence in sequences], sum(map(len, sequences)))
            yield rows[tokens], start, tree, sequences


def draw(logits_RV: Tensor, u_R: Tensor) -> Tensor:
    """The token (R,) at which each row's cumulative distribution passes u (temperature 1): a sample if u is uniform.

    Probabilities are summed by parts of the vocabulary first, then within the part.
    """
    p_RV = torch.softmax(logits_RV, dim=-1)
    p_RV = torch.nn.functional.pad(p_RV, (0, -p_RV.shape[1] % PART)).unflatten(1, (-1, PART))
    ends_RP = p_RV.sum(dim=-1).cumsum(dim=-1)
    target_R1 = u_R[:, None] * ends_RP[:, -1:]  # the sum is 1 up to rounding
    part_R1 = torch.searchsorted(ends_RP, target_R1, right=True).clamp(max=ends_RP.shape[1] - 1)
    before_R1 = torch.nn.functional.pad(ends_RP, (1, 0)).gather(1, part_R1)
    within_RW = p_RV[torch.arange(len(p_RV)), part_R1[:, 0]]
    ends_RW = within_RW.cumsum(dim=-1)
    token_R1 = torch.searchsorted(ends_RW, target_R1 - before_R1, right=True)
    # rounding may lead past the part's last token with a probability
    last_R1 = (within_RW > 0).int().mul(torch.arange(1, PART + 1)).argmax(dim=-1, keepdim=True)
    return (part_R1 * PART + torch.minimum(token_R1, last_R1))[:, 0]
