"""Several processes share the questions of a checkpoint (`eval run` under torchrun or accelerate launch).

The unit is a chunk of eval.runner.plan, asked in the company that it has in one process, so that the records are the
same, on a CPU bit for bit. Rank 0 leads: it alone holds the folder's lock, says who asks which chunks, takes in the
shards (eval.runner.shards) when all are asked, and then goes through the plan as one process would, finding everything
there. The others only ask.
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
from eval.runner.processes import Team
from eval.runner.shards import Shard, done_in, new_records, summed
from eval.runner.store import Store
from eval.types import Prompt, Scorer

if TYPE_CHECKING:
    from eval.runner.answered import Known

SAMPLED_TOKEN = 2.0
"""Sampling a token costs about as much as reading so many; asked for only to level what is left between the shares."""
CHARACTERS = 4  # of a token, about

Portion = tuple[int, list[int] | None]
"""The number of a chunk within the plan, and which of its questions are asked together; None: all."""
Ask = Callable[[Job, list[Question], Store], int]
"""Asks questions of a chunk together and appends what is new to a store; what that is worth on the progress bar."""


def assigned(costs: dict[int, tuple[bool, float]], size: int) -> list[list[int]]:
    """{chunk: (with reasoning, estimated cost)} -> the chunks of each of `size` processes, in the plan's order.

    Longest first, each to the process that has least so far; chunks with reasoning before all others, so that each
    kind is shared evenly although their costs are only roughly known to each other.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for chunk in sorted(costs, key=lambda n: (not costs[n][0], -costs[n][1], n)):
        least = loads.index(min(loads))
        shares[least].append(chunk)
        loads[least] += costs[chunk][1]
    return [sorted(share) for share in shares]


def cost(questions: Sequence[Question], max_new_tokens: int) -> float:
    """What asking them costs, in tokens read, by the length of their texts."""
    read = sum(len(turn.text) for q in questions for turn in q.prompt().turns) / CHARACTERS
    return read + SAMPLED_TOKEN * max_new_tokens * sum(q.condition.reasoning for q in questions)


def deals(planned: Plan, known: Known, config: EvaluationConfig, size: int) -> Iterator[list[list[Portion]]]:
    """What is not known yet, dealt out: the portions of each process, in one deal.

    With a precision there are many: the next chunks of a job, one each, until what is known by then tells to stop, the
    chunks being looked at in their order as by one process. The caller brings `known` up to date between two deals.
    """
    chunks = list(enumerate((job, chunk) for job in planned.jobs for chunk in job.chunks))

    def portion(n: int, chunk: list[Question]) -> Portion:
        left = {q.key for q in known.left(chunk)}
        return n, None if len(left) == len(chunk) else [i for i, q in enumerate(chunk) if q.key in left]

    if config.precision is None:
        left = {n: chunk for n, (_, chunk) in chunks if known.left(chunk)}
        costs = {
            n: (chunk[0].condition.reasoning, cost(known.left(chunk), config.cot_max_new_tokens))
            for n, chunk in left.items()
        }
        if left:
            yield [[portion(n, left[n]) for n in share] for share in assigned(costs, size)]
        return
    for job in planned.jobs:
        watch, waiting = job.watch(config.precision), [(n, chunk) for n, (of, chunk) in chunks if of is job]
        while waiting:
            if not known.left(waiting[0][1]):
                if watch.look([known.done[q.key] for q in waiting.pop(0)[1]]):
                    break
                continue
            wanted = [portion(n, chunk) for n, chunk in waiting if known.left(chunk)][:size]
            yield [wanted[rank : rank + 1] for rank in range(size)]


@runtime_checkable
class SelfChecking(Protocol):
    """A scorer that finds out on the first prompts how it may score."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Finds it out on these prompts, as if they were asked."""
        ...


class Share:
    """What this process asks of a plan, into its shard; before a job's first chunk it checks its scorer on the prompts
    on which one process would have: the first of that job and of those before it.
    """

    def __init__(
        self, us: Team, scorer: Scorer, planned: Plan, shard: Shard, described: dict[str, Any], ask: Ask
    ) -> None:
        self.us = us
        self.scorer = scorer
        self.jobs = planned.jobs
        self.chunks = [(number, chunk) for number, job in enumerate(planned.jobs) for chunk in job.chunks]
        self.shard = shard
        self.described = described | {"rank": us.rank, "processes": us.size, "done": {}}
        self.ask = ask
        self.checked = 0

    def do(self, portions: list[Portion], after_each: Callable[[int], object]) -> None:
        """Asks the portions, and tells after each what it was worth. Raises Elsewhere where another process failed."""
        if portions and self.shard.session is None:
            self.shard.begin(self.described)
        for number, chosen in portions:
            self.us.look()
            of, chunk = self.chunks[number]
            while self.checked <= of:
                if isinstance(self.scorer, SelfChecking):
                    self.scorer.check([q.prompt() for q in self.jobs[self.checked].chunks[0]])
                self.checked += 1
            together = chunk if chosen is None else [chunk[i] for i in chosen]
            after_each(self.ask(self.jobs[of], together, self.shard))


def lead(
    us: Team,
    config: EvaluationConfig,
    scorer: Scorer,
    planned: Plan,
    store: Store,
    known: Known,
    described: dict[str, Any],
    ask: Ask,
    progress: Callable[[int], object],
) -> None:
    """Rank 0's part: deals out what is not known yet and asks its own portions; ends when all is in the shards.

    progress is told what the others have asked since it was told last, by its worth on the bar.
    """
    job = secrets.token_hex(4)
    us.say("begun", {"job": job, "described": alike(described)})
    mine = Share(us, scorer, planned, Shard(store.folder, f"{job}-rank-0"), described, ask)
    before, heard, read = store.state["done"], 0, {}

    def note(anew: bool = False) -> None:  # so that `eval list` knows how far it is
        nonlocal heard
        asked = us.count("asked")
        if anew or asked > heard:
            progress(asked - heard)
            heard = asked
            store.state["done"] = summed(before, done_in(store.folder, job))
            store.write_state()

    number = -1
    for number, portions in enumerate(deals(planned, known, config, us.size)):
        us.say(f"deal {number}", portions)
        mine.do(portions[0], lambda _: note(True))
        us.count(f"done {number}", 1)
        us.wait(lambda n=number: us.count(f"done {n}") == us.size, note)
        if config.precision is not None:
            known.learn(new_records(store.folder, job, read))
    us.say(f"deal {number + 1}", None)
    note(True)


def follow(us: Team, scorer: Scorer, planned: Plan, store: Store, described: dict[str, Any], ask: Ask) -> None:
    """The part of any other rank: asks what rank 0 deals out to it, until there is no more.

    Raises InputError where what would be asked here is something else than there.
    """
    begun = us.hear("begun")
    if begun is None:
        return
    for name, there in begun["described"].items():
        if name in described and (here := described[name]) != there:
            raise InputError(
                f"rank {us.rank} has another {name} than rank 0 ({json.dumps(here)[:60]} here, "
                f"{json.dumps(there)[:60]} there); give all processes the same files, and the same kind of device"
            )
    shard = Shard(store.folder, f"{begun['job']}-rank-{us.rank}")
    mine = Share(us, scorer, planned, shard, described, ask)
    for number in itertools.count():
        portions = us.hear(f"deal {number}")
        if portions is None:
            return
        mine.do(portions[us.rank], lambda worth: us.count("asked", worth))
        us.count(f"done {number}", 1)


def alike(described: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes of a job."""
    return {name: described[name] for name in (*IDENTITY, *SELECTION) if name in described}
