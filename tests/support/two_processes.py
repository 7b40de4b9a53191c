"""Two steps of each trainer, in however many processes this is started in, with the same answers in any number.

    torchrun --nproc_per_node 2 -m tests.support.two_processes MODEL REWARD_MODEL OUTPUT

What a policy samples depends on each process's random state, so sampling alone is replaced: the answers follow from
the prompt and from which of its answers they are, wherever they are sampled. The rest is the trainers' own. Plain SGD
without clipping takes the place of Adam, whose step does not grow with the gradient and would hide a wrong one.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

GROUP = 4
ANSWERS = 12
"""Of a step, on all processes: three prompts with GROUP answers each; two processes divide those of the middle one."""
VOCABULARY = range(5, 600)
END = 1
LONGEST = 6


def answer(prompt_ids: Sequence[int], index: int) -> list[int]:
    """The index-th answer to a prompt: one to six tokens, of which the last is the end or, in one of three, is not."""
    draw = random.Random(repr((list(prompt_ids), index)))
    ids = draw.choices(VOCABULARY, k=draw.randint(1, LONGEST))
    return ids if len(ids) == LONGEST and draw.random() < 1 / 3 else [*ids[: LONGEST - 1], END]


def grouped(trainer: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
    """RLOO's and GRPO's answers: each prompt stands there GROUP times in a row over the processes' batches in turn."""
    first = trainer.accelerator.process_index * len(prompt_ids)
    return [answer(ids, (first + i) % trainer.num_generations) for i, ids in enumerate(prompt_ids)]


def paired(trainer: Any, model: Any, prompts: list[Any], images: Any = None) -> tuple[Any, ...]:
    """Online DPO's two answers to each prompt: the first of all prompts, then the second of all, as its _generate has
    them; prompts padded on the left and answers on the right, of shape (2 prompts, tokens).
    """
    import torch
    from trl.trainer.utils import pad

    tokenizer = trainer.processing_class
    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    prompt_ids = [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    answers = [torch.tensor(answer(ids.tolist(), index)) for index in (0, 1) for ids in prompt_ids]
    padded = []
    for rows, side in ((prompt_ids * 2, "left"), (answers, "right")):
        padded += [pad(rows, tokenizer.pad_token_id, side), pad([torch.ones_like(row) for row in rows], 0, side)]
    return *padded, None


class Case(NamedTuple):
    """module: with train(arguments, config, model_args); the classes of its options and of TRL's trainer, by name.

    sampling: the trainer's method that samples, and what takes its place; None where nothing is sampled.
    compared: the names under which it logs what must be the same.
    """

    module: str
    arguments: str
    config: str
    trainer: str
    sampling: tuple[str, Callable[..., Any]] | None
    options: dict[str, object]
    compared: tuple[str, ...]


CASES = {
    "rloo": Case(
        "train.rloo", "train.arguments.PolicyArguments", "trl.RLOOConfig", "trl.RLOOTrainer",
        ("_generate_single_turn", lambda self, prompt_ids, *_: grouped(self, prompt_ids)),
        {"num_generations": GROUP, "beta": 0.05, "max_completion_length": LONGEST},
        ("loss", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio"),
    ),
    "grpo": Case(
        "train.grpo", "train.arguments.PolicyArguments", "train.grpo.KLGRPOConfig", "trl.GRPOTrainer",
        ("_generate_single_turn", lambda self, prompt_ids, *_, **__: (grouped(self, prompt_ids), None)),
        {"num_generations": GROUP, "beta": 0.05, "max_completion_length": LONGEST},
        ("loss", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio"),
    ),
    "online_dpo": Case(
        "train.online_dpo", "train.arguments.PolicyArguments", "train.online_dpo.PairedConfig",
        "trl.experimental.online_dpo.OnlineDPOTrainer", ("_generate", paired), {"max_new_tokens": LONGEST},
        ("loss", "reward", "objective/scores_margin", "logps/chosen", "logps/rejected", "rewards/margins"),
    ),
    "sft": Case("train.sft", "train.sft.SFTArguments", "trl.SFTConfig", "trl.SFTTrainer", None, {}, ("loss",)),
}  # fmt: skip


def named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@contextmanager
def sampled_alike(case: Case, seen: dict[str, list[Any]], name: str) -> Iterator[None]:
    """Puts `case.sampling` in the place of the trainer's own, and notes the prompts that it is given."""
    if case.sampling is None:
        yield
        return
    method, sample = case.sampling

    def noting(self: Any, *given: Any, **more: Any) -> Any:
        seen[name].append(next(argument for argument in given if isinstance(argument, list)))
        return sample(self, *given, **more)

    with mock.patch.object(named(case.trainer), method, noting):
        yield


def options(case: Case, model: str, reward: str, output: Path, processes: int) -> list[str]:
    values = {
        "model_name_or_path": model, "output_dir": output, "checkpoint_steps": "0 2", "max_steps": 2,
        "save_strategy": "no", "use_peft": "true", "lora_r": 4, "lora_dropout": 0.0,
        "lora_target_modules": "q_proj v_proj", "per_device_train_batch_size": ANSWERS // processes,
        "optim": "sgd", "learning_rate": 0.02, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "logging_steps": 1, "gradient_checkpointing": "false", "bf16": "false", "use_cpu": "true", "report_to": "none",
        "disable_tqdm": "true", "seed": 3, **case.options,
    }  # fmt: skip
    if case.sampling is not None:
        values |= {"reward_model": reward, "max_prompt_tokens": 1000, "sample_prompts": 0, "kl_target": 0.0}
    return [part for key, value in values.items() for part in (f"--{key}", *str(value).split())]


def run(model: str, reward: str, output: Path, processes: int) -> dict[str, list[Any]]:
    """Two steps of each trainer into OUTPUT/NAME; returns the prompts that this process sampled from, by trainer.

    Raises RuntimeError where there are more or fewer processes than `processes`.
    """
    from accelerate import PartialState
    from trl import ModelConfig

    from eval.cli.parser import parse

    seen: dict[str, list[Any]] = defaultdict(list)
    for name, case in CASES.items():
        argv = options(case, model, reward, output / name, processes)
        parsed = parse([named(case.arguments), named(case.config), ModelConfig], argv, case.module)
        if PartialState().num_processes != processes:
            raise RuntimeError(f"{PartialState().num_processes} processes instead of {processes}")
        with sampled_alike(case, seen, name):
            importlib.import_module(case.module).train(*parsed)
    return seen


def main() -> None:
    import json

    from torch import distributed

    model, reward, output = sys.argv[1:]
    seen = run(model, reward, Path(output), processes=2)
    rank = distributed.get_rank()
    (Path(output) / f"seen-{rank}-of-{distributed.get_world_size()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
