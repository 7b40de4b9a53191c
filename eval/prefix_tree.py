"""Many token sequences that share beginnings -> packs in which each distinct beginning stands once. No model code.

A pack is a tree in depth-first order. A node's position is its depth; it may attend to its ancestors and itself, so a
forward pass over the pack gives each sequence exactly what a pass over it alone would give.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def _shared(self, sequence: tuple[int, ...]) -> int:
        n = 0
        while n < min(len(self.path), len(sequence)) and self.tokens[self.path[n]] == sequence[n]:
            n += 1
        return n

    def new_nodes(self, sequence: tuple[int, ...]) -> int:
        return len(sequence) - self._shared(sequence)

    def add(self, index: int, sequence: tuple[int, ...]) -> None:
        shared = self._shared(sequence)
        self.path = self.path[:shared]
        for depth in range(shared, len(sequence)):
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
