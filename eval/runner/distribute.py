"""Shares one checkpoint's questions among several processes (`eval run` under torchrun or accelerate launch).

The unit of work is a chunk of eval.runner.plan. A chunk is batched as in a single process, so the records are the same
(on a CPU bit for bit). Rank 0 leads. It alone holds the folder's lock and assigns chunks to ranks. When all are scored
it merges the shards (eval.runner.shards) and then goes through the plan as a single process would, finding every answer
there. The other ranks only score their chunks.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.runner.keys import IDENTITY, SELECTION
from eval.runner.plan import Job, Plan, Question
from eval.runner.processes import ProcessGroup
from eval.runner.shards import Shard, done_in, new_records, summed
from eval.runner.store import Store
from eval.types import Prompt, Scorer

if TYPE_CHECKING:
    from eval.runner.answered import Answered

SAMPLED_TOKEN = 2.0
"""Approximate cost of sampling a token, in tokens read. It only balances the shares."""
CHARACTERS = 4  # approximate length of a token

Portion = tuple[int, list[int] | None]
"""(chunk's number within the plan, indices of its questions to score together or None for all)."""
EvaluateChunk = Callable[[Job, list[Question], Store], int]
"""(job, questions, store) -> progress-bar units: scores the questions together and appends the new records."""


def assigned(costs: dict[int, tuple[bool, float]], size: int) -> list[list[int]]:
    """Assigns chunks to processes: longest first, each to the process with the least work so far.

    Chunks with reasoning come before all others. Each kind is then shared evenly, although their costs are comparable
    only roughly.

    Args:
        costs: {chunk: (with reasoning, estimated cost)}.
        size: Number of processes.

    Returns:
        The chunks of each process, in the plan's order.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for chunk in sorted(costs, key=lambda n: (not costs[n][0], -costs[n][1], n)):
        least = loads.index(min(loads))
        shares[least].append(chunk)
        loads[least] += costs[chunk][1]
    return [sorted(share) for share in shares]


def cost(questions: Sequence[Question], max_new_tokens: int) -> float:
    """Returns the estimated cost of scoring the questions, in tokens read, from the length of their texts."""
    read = sum(len(turn.text) for q in questions for turn in q.prompt().turns) / CHARACTERS
    return read + SAMPLED_TOKEN * max_new_tokens * sum(q.condition.reasoning for q in questions)


def deals(planned: Plan, answered: Answered, config: EvaluationConfig, size: int) -> Iterator[list[list[Portion]]]:
    """Yields rounds of work: in each, the portions of pending questions of every process.

    Without a precision there is one round. With a precision there are many: the next pending chunks of a job, one for
    each process, until the answers so far meet the stopping rule. The rule reads the chunks in the order in which a
    single process would. The caller brings `answered` up to date between two rounds.
    """
    chunks = list(enumerate((job, chunk) for job in planned.jobs for chunk in job.chunks))

    def portion(n: int, chunk: list[Question]) -> Portion:
        pending = {q.key for q in answered.pending(chunk)}
        return n, None if len(pending) == len(chunk) else [i for i, q in enumerate(chunk) if q.key in pending]

    if config.precision is None:
        pending = {n: chunk for n, (_, chunk) in chunks if answered.pending(chunk)}
        costs = {
            n: (chunk[0].condition.reasoning, cost(answered.pending(chunk), config.cot_max_new_tokens))
            for n, chunk in pending.items()
        }
        if pending:
            yield [[portion(n, pending[n]) for n in share] for share in assigned(costs, size)]
        return
    for job in planned.jobs:
        watch, remaining = job.watch(config.precision), [(n, chunk) for n, (owner, chunk) in chunks if owner is job]
        while remaining:
            if not answered.pending(remaining[0][1]):
                if watch.look([answered.done[q.key] for q in remaining.pop(0)[1]]):
                    break
                continue
            wanted = [portion(n, chunk) for n, chunk in remaining if answered.pending(chunk)][:size]
            yield [wanted[rank : rank + 1] for rank in range(size)]


@runtime_checkable
class SelfChecking(Protocol):
    """A scorer that chooses its method of scoring by a check on its first prompts."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Runs the check on these prompts, as if they were scored."""
        ...


class Share:
    """This process's share of a plan, scored into its shard.

    Before the first chunk of a job, the scorer's self-check runs on the same prompts as in a single process: the first
    chunk of that job and of each job before it.
    """

    def __init__(
        self,
        group: ProcessGroup,
        scorer: Scorer,
        planned: Plan,
        shard: Shard,
        described: dict[str, Any],
        evaluate_chunk: EvaluateChunk,
    ) -> None:
        self.group = group
        self.scorer = scorer
        self.jobs = planned.jobs
        self.chunks = [(number, chunk) for number, job in enumerate(planned.jobs) for chunk in job.chunks]
        self.shard = shard
        self.described = described | {"rank": group.rank, "processes": group.size, "done": {}}
        self.evaluate_chunk = evaluate_chunk
        self.checked = 0

    def run(self, portions: list[Portion], after_each: Callable[[int], object]) -> None:
        """Scores the portions.

        Args:
            portions: The portions of this process in one round.
            after_each: Called after each portion with its share of the progress bar.

        Raises:
            RemoteError: Another process failed.
        """
        if portions and self.shard.session is None:
            self.shard.begin(self.described)
        for number, indices in portions:
            self.group.raise_if_failed()
            job_number, chunk = self.chunks[number]
            while self.checked <= job_number:
                if isinstance(self.scorer, SelfChecking):
                    self.scorer.check([q.prompt() for q in self.jobs[self.checked].chunks[0]])
                self.checked += 1
            batch = chunk if indices is None else [chunk[i] for i in indices]
            after_each(self.evaluate_chunk(self.jobs[job_number], batch, self.shard))


def lead(
    group: ProcessGroup,
    config: EvaluationConfig,
    scorer: Scorer,
    planned: Plan,
    store: Store,
    answered: Answered,
    described: dict[str, Any],
    evaluate_chunk: EvaluateChunk,
    progress: Callable[[int], object],
) -> None:
    """Runs rank 0's part: hands out the pending questions and scores its own portions.

    Returns when all answers are in the shards.

    Args:
        group: The processes of this job.
        config: What to evaluate.
        scorer: This process's scorer.
        planned: The plan, the same on every rank.
        store: The folder's store, locked by the caller.
        answered: The questions that are answered already. With a precision it is brought up to date after each round.
        described: The provenance.
        evaluate_chunk: Scores questions into a store.
        progress: Called with the progress-bar units that other ranks have added since the last call.
    """
    job = secrets.token_hex(4)
    group.broadcast("begun", {"job": job, "described": shared_settings(described)})
    share = Share(group, scorer, planned, Shard(store.folder, f"{job}-rank-0"), described, evaluate_chunk)
    done_before, reported, offsets = store.state["done"], 0, {}

    def update_progress(force: bool = False) -> None:  # `eval list` reads the counts
        nonlocal reported
        total = group.count("asked")
        if force or total > reported:
            progress(total - reported)
            reported = total
            store.state["done"] = summed(done_before, done_in(store.folder, job))
            store.write_state()

    number = -1
    for number, portions in enumerate(deals(planned, answered, config, group.size)):
        group.broadcast(f"deal {number}", portions)
        share.run(portions[0], lambda _: update_progress(True))
        group.count(f"done {number}", 1)
        group.wait(lambda n=number: group.count(f"done {n}") == group.size, update_progress)
        if config.precision is not None:
            answered.add(new_records(store.folder, job, offsets))
    group.broadcast(f"deal {number + 1}", None)
    update_progress(True)


def follow(
    group: ProcessGroup,
    scorer: Scorer,
    planned: Plan,
    store: Store,
    described: dict[str, Any],
    evaluate_chunk: EvaluateChunk,
) -> None:
    """Runs any other rank's part: scores what rank 0 hands out, until there is no more.

    Raises:
        InputError: This rank has other data, settings or weights than rank 0.
    """
    start = group.receive("begun")
    if start is None:
        return
    for name, on_rank_0 in start["described"].items():
        if name in described and (on_this_rank := described[name]) != on_rank_0:
            raise InputError(
                f"rank {group.rank} has another {name} than rank 0 ({json.dumps(on_this_rank)[:60]} here, "
                f"{json.dumps(on_rank_0)[:60]} there); give all processes the same files, and the same kind of device"
            )
    shard = Shard(store.folder, f"{start['job']}-rank-{group.rank}")
    share = Share(group, scorer, planned, shard, described, evaluate_chunk)
    for number in itertools.count():
        portions = group.receive(f"deal {number}")
        if portions is None:
            return
        share.run(portions[group.rank], lambda units: group.count("asked", units))
        group.count(f"done {number}", 1)


def shared_settings(described: dict[str, Any]) -> dict[str, Any]:
    """Returns the provenance fields that must agree in all processes of a job."""
    return {name: described[name] for name in (*IDENTITY, *SELECTION) if name in described}
