"""Many token sequences that share beginnings -> trees in which each distinct beginning stands once. No model code.

Nodes stand in depth-first order. A node's position is its depth; it may attend to its ancestors and itself, so a
forward pass over the tree gives each sequence exactly what a pass over it alone would give. Two forms:

- packs (`pack`): trees of their own, each with everything that its sequences need, for any model;
- slices (`slices`): one tree over all sequences, cut anywhere. In depth-first order all that a slice needs of what
  stands before it is the way down to its first node: a model that keeps keys and values along computes no node twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pack:
    """tokens_N, depth_N, parent_N (-1 at a root); last_S: the node at which each of the pack's sequences ends."""

    tokens_N: np.ndarray
    depth_N: np.ndarray
    parent_N: np.ndarray
    sequences: tuple[int, ...]
    last_S: np.ndarray

    def ancestors_NN(self) -> np.ndarray:
        """Boolean (N, N): node i may attend to node j, that is, j is i or one of its ancestors."""
        allowed_NN = np.zeros((len(self.tokens_N), len(self.tokens_N)), dtype=bool)
        for i, parent in enumerate(self.parent_N):  # a parent stands before its children
            if parent >= 0:
                allowed_NN[i] = allowed_NN[parent]
            allowed_NN[i, i] = True
        return allowed_NN


def pack(sequences: Sequence[tuple[int, ...]], max_tokens: int) -> list[Pack]:
    """Packs all sequences (none empty), each into one pack of at most max_tokens nodes; a longer one goes alone."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    packs, current = [], _Builder()
    for i in order:
        if current.sequences and len(current.tokens) + current.new_nodes(sequences[i]) > max_tokens:
            packs.append(current.build())
            current = _Builder()
        current.add(i, sequences[i])
    if current.sequences:
        packs.append(current.build())
    return packs


class _Builder:
    """Adds sequences in sorted order, so that what a new one shares is a beginning of the one before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.parent: list[int] = []
        self.path: list[int] = []  # nodes of the sequence added last
        self.sequences: list[int] = []
        self.last: list[int] = []

    def _shared_length(self, sequence: tuple[int, ...]) -> int:
        n = 0
        while n < min(len(self.path), len(sequence)) and self.tokens[self.path[n]] == sequence[n]:
            n += 1
        return n

    def new_nodes(self, sequence: tuple[int, ...]) -> int:
        return len(sequence) - self._shared_length(sequence)

    def add(self, index: int, sequence: tuple[int, ...]) -> None:
        n_shared = self._shared_length(sequence)
        self.path = self.path[:n_shared]
        for depth in range(n_shared, len(sequence)):
            self.parent.append(self.path[-1] if self.path else -1)
            self.path.append(len(self.tokens))
            self.tokens.append(sequence[depth])
            self.depth.append(depth)
        self.sequences.append(index)
        self.last.append(self.path[-1])

    def build(self) -> Pack:
        return Pack(
            np.array(self.tokens), np.array(self.depth), np.array(self.parent), tuple(self.sequences),
            np.array(self.last),
        )  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """Some nodes of the tree over all sequences.

    The pool of a slice is the P nodes on the way down to its first node, by depth, and then its own N nodes.
    tokens_N, depth_N: the own nodes; last_P: for every node of the pool the last one of the pool that stands below it
    (or it itself); above: the ancestors in the pool, from the root down, of the first own node of each block of `block`
    own nodes; sequences, and ways: for each the nodes of the pool that it consists of; keep: the nodes of the pool that
    are the way down to the first node of the next slice.
    """

    tokens_N: np.ndarray
    depth_N: np.ndarray
    last_P: np.ndarray
    block: int
    ancestors: tuple[np.ndarray, ...]
    sequences: tuple[int, ...]
    node_paths: tuple[np.ndarray, ...]
    keep: np.ndarray

    @property
    def path(self) -> int:
        """How many nodes of the pool stand before the slice's own."""
        return len(self.last_P) - len(self.tokens_N)


def slices(
    sequences: Sequence[tuple[int, ...]], max_tokens: int, block: int, root: int = 0, aligned: bool = False,
    keep_last: bool = False,
) -> Iterator[Slice]:  # fmt: skip
    """One tree over all sequences as slices of at most max_tokens nodes.

    The first `root` tokens, which all sequences must share, are taken as computed already: they are the pool's first
    nodes. aligned: every branch begins a block of its own (padding before it), so that the keys of any node's block
    are its ancestors by depth, whatever else is in the tree. keep_last: the last slice keeps the last sequence.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    previous: tuple[int, ...] = sequences[order[0]][:root] if order else ()
    current = _SliceBuilder(root, block)
    for i in order:
        sequence = sequences[i]
        start = shared_length(previous, sequence)
        while True:
            current.go_to(start)
            if aligned and start < len(sequence):
                current.align()
            room = max(0, max_tokens - len(current.tokens))
            part = sequence[start : start + room]
            current.extend(part, start)
            start += len(part)
            if start == len(sequence):
                break
            yield current.build(keep=start)
            current = _SliceBuilder(start, block)
        current.end(i)
        previous = sequence
    yield current.build(keep=len(previous) if keep_last else 0)


def shared_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens a and b begin with in common."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class _SliceBuilder:
    """path: the pool's nodes from the root to where the next token is added."""

    def __init__(self, n_path: int, block: int) -> None:
        self.path = list(range(n_path))
        self.n_path = n_path
        self.block = block
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.last: list[int] = [-1] * n_path  # set when the path leaves the node
        self.ancestors: list[np.ndarray] = []
        self.sequences: list[int] = []
        self.node_paths: list[np.ndarray] = []

    def go_to(self, depth: int) -> None:
        """Up the path to where `depth` tokens are above the next one."""
        last_node = self.n_path + len(self.tokens) - 1
        for node in self.path[depth:]:
            self.last[node] = last_node
        del self.path[depth:]

    def align(self) -> None:
        """Padding up to the next block, unless the next token follows the last one."""
        next_node = self.n_path + len(self.tokens)
        if self.tokens and not (self.path and self.path[-1] == next_node - 1):
            n = -len(self.tokens) % self.block
            self.tokens += [0] * n
            self.depth += [0] * n
            self.last += range(next_node, next_node + n)

    def extend(self, tokens: tuple[int, ...], depth: int) -> None:
        """A chain of tokens below the path's end."""
        first, n = len(self.tokens), len(tokens)
        for k in range(-first % self.block, n, self.block):  # a block begins within this chain
            chain = range(self.n_path + first, self.n_path + first + k)
            self.ancestors.append(np.array([*self.path, *chain], dtype=np.int64))
        self.path += range(self.n_path + first, self.n_path + first + n)
        self.tokens += tokens
        self.depth += range(depth, depth + n)
        self.last += [-1] * n

    def end(self, sequence: int) -> None:
        """The sequence ends at the path's end."""
        self.sequences.append(sequence)
        self.node_paths.append(np.array(self.path, dtype=np.int64))

    def build(self, keep: int) -> Slice:
        """The slice; the next one goes on below `keep` tokens of the path."""
        kept = np.array(self.path[:keep], dtype=np.int64)
        self.go_to(0)
        tokens, depth, last = (np.array(x, dtype=np.int64) for x in (self.tokens, self.depth, self.last))
        return Slice(
            tokens, depth, last, self.block, tuple(self.ancestors), tuple(self.sequences), tuple(self.node_paths), kept
        )
