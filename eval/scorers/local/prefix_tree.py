"""Turns token sequences that share beginnings into trees that hold each distinct beginning once. No model code.

Nodes are in depth-first order. A node's position is its depth, and it may attend to its ancestors and itself. So a
forward pass over the tree gives each sequence exactly what a pass over it alone would give. Two forms:

- packs (`pack`): separate trees, each with everything that its sequences need, for any model;
- slices (`slices`): one tree over all sequences, cut anywhere. In depth-first order, all that a slice needs of earlier
  nodes is the path to its first node. A model that carries keys and values along computes no node twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pack:
    """One tree.

    Attributes:
        tokens_N: Token of each node.
        depth_N: Its depth, which is its position.
        parent_N: Its parent node, -1 at a root.
        sequences: Indices of the pack's sequences.
        last_S: The node at which each of them ends.
    """

    tokens_N: np.ndarray
    depth_N: np.ndarray
    parent_N: np.ndarray
    sequences: tuple[int, ...]
    last_S: np.ndarray

    def ancestors_NN(self) -> np.ndarray:
        """Boolean (N, N): whether node i may attend to node j, that is, j is i or one of its ancestors."""
        allowed_NN = np.zeros((len(self.tokens_N), len(self.tokens_N)), dtype=bool)
        for i, parent in enumerate(self.parent_N):  # a parent comes before its children
            if parent >= 0:
                allowed_NN[i] = allowed_NN[parent]
            allowed_NN[i, i] = True
        return allowed_NN


def pack(sequences: Sequence[tuple[int, ...]], max_tokens: int) -> list[Pack]:
    """Packs sequences, none of them empty, into trees of at most max_tokens nodes.

    A longer sequence has a pack to itself. No sequence is divided between packs.
    """
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
    """Adds sequences in sorted order, so that a new one shares a beginning with the one before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.parent: list[int] = []
        self.path: list[int] = []  # nodes of the last added sequence
        self.sequences: list[int] = []
        self.last: list[int] = []

    def _shared_length(self, sequence: tuple[int, ...]) -> int:
        """How many first tokens the sequence shares with the last added one."""
        n = 0
        while n < min(len(self.path), len(sequence)) and self.tokens[self.path[n]] == sequence[n]:
            n += 1
        return n

    def new_nodes(self, sequence: tuple[int, ...]) -> int:
        """How many nodes adding the sequence would create."""
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

    The pool of a slice is the P nodes on the path to its first node, by depth, followed by its own N nodes.

    Attributes:
        tokens_N: Tokens of its own nodes.
        depth_N: Depths of its own nodes.
        last_P: For every node of the pool, the pool's last node below it, or itself.
        block: Number of own nodes in a block.
        ancestors: For each block, the ancestors of its first node, as nodes of the pool from the root down.
        sequences: Indices of the sequences that end in this slice.
        node_paths: For each of them, the nodes of the pool that it consists of.
        keep: The nodes of the pool on the path to the next slice's first node.
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
        """How many nodes of the pool precede the slice's own."""
        return len(self.last_P) - len(self.tokens_N)


def slices(
    sequences: Sequence[tuple[int, ...]], max_tokens: int, block: int, root: int = 0, aligned: bool = False,
    keep_last: bool = False,
) -> Iterator[Slice]:  # fmt: skip
    """Cuts one tree over all sequences into slices of at most max_tokens nodes.

    Args:
        sequences: The token sequences.
        max_tokens: The most nodes of a slice.
        block: Nodes of a block.
        root: Number of first tokens, shared by all sequences, that are computed already: the pool's first nodes.
        aligned: Start every branch at a new block, with padding before it, so that the keys of any node's block are its
            ancestors by depth, whatever else is in the tree.
        keep_last: The last slice keeps the path of the last sequence.
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
    """How many first tokens a and b have in common."""
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
    """Builds one slice. path: the pool's nodes from the root to the node below which the next token is added."""

    def __init__(self, n_path: int, block: int) -> None:
        self.path = list(range(n_path))
        self.n_path = n_path
        self.block = block
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.last: list[int] = [-1] * n_path  # set when the path leaves the node's subtree
        self.ancestors: list[np.ndarray] = []
        self.sequences: list[int] = []
        self.node_paths: list[np.ndarray] = []

    def go_to(self, depth: int) -> None:
        """Moves up the path until `depth` tokens remain above the next one."""
        last_node = self.n_path + len(self.tokens) - 1
        for node in self.path[depth:]:
            self.last[node] = last_node
        del self.path[depth:]

    def align(self) -> None:
        """Pads up to the next block, unless the next token is a child of the last one."""
        next_node = self.n_path + len(self.tokens)
        if self.tokens and not (self.path and self.path[-1] == next_node - 1):
            n = -len(self.tokens) % self.block
            self.tokens += [0] * n
            self.depth += [0] * n
            self.last += range(next_node, next_node + n)

    def extend(self, tokens: tuple[int, ...], depth: int) -> None:
        """Adds a chain of tokens below the path's end."""
        first, n = len(self.tokens), len(tokens)
        for k in range(-first % self.block, n, self.block):  # a block begins within this chain
            chain = range(self.n_path + first, self.n_path + first + k)
            self.ancestors.append(np.array([*self.path, *chain], dtype=np.int64))
        self.path += range(self.n_path + first, self.n_path + first + n)
        self.tokens += tokens
        self.depth += range(depth, depth + n)
        self.last += [-1] * n

    def end(self, sequence: int) -> None:
        """Ends the sequence with this index at the path's end."""
        self.sequences.append(sequence)
        self.node_paths.append(np.array(self.path, dtype=np.int64))

    def build(self, keep: int) -> Slice:
        """Returns the slice. The next one continues below the first `keep` nodes of the path."""
        kept = np.array(self.path[:keep], dtype=np.int64)
        self.go_to(0)
        tokens, depth, last = (np.array(x, dtype=np.int64) for x in (self.tokens, self.depth, self.last))
        return Slice(
            tokens, depth, last, self.block, tuple(self.ancestors), tuple(self.sequences), tuple(self.node_paths), kept
        )
