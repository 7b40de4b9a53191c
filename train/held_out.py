"""How well a saved model knows held-out examples: the loss of their completions, and how many it reproduces exactly.

It also measures how many of its answers end. Loss and exact matches need one forward pass: greedy decoding gives a
completion exactly if each of its tokens is the most probable one after those before it. To see whether answers end, the
model answers some of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from reward.dialogues import all_token_ids
from train.examples import Example

BATCH = 8
ANSWERS = 16
"""Number of prompts to answer, the first ones."""
ROOM = 2
"""An answer may have this many times the tokens of the longest completion of these prompts."""


def completion_tokens(tokenizer: Any, example: Example) -> tuple[list[int], int]:
    """(token ids of prompt and completion, index at which the completion begins), as in TRL's SFTTrainer."""
    whole = all_token_ids(tokenizer, [example.prompt + example.completion])[0]
    prompt = tokenizer.apply_chat_template(
        example.prompt, tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]  # fmt: skip
    start = 0
    while start < min(len(prompt), len(whole)) and prompt[start] == whole[start]:
        start += 1
    return whole, start


@torch.inference_mode()
def measure(model: Any, tokenizer: Any, examples: Sequence[Example], end_ids: Sequence[int]) -> dict[str, Any]:
    """Measures a model on examples.

    Returns:
        {"loss": mean negative log-likelihood of a completion's token in nats, "exact_match": share of the examples
        whose completion, up to the token that ends it, is the greedy one, "n": examples, "n_tokens": completion
        tokens}, and the result of finished_answers.
    """
    ends = set(end_ids)
    encoded = sorted((completion_tokens(tokenizer, e) for e in examples), key=lambda e: len(e[0]))
    loss, n_tokens, exact = 0.0, 0, 0
    for first in tqdm(range(0, len(encoded), BATCH), desc="held-out examples", disable=None, leave=False):
        batch = encoded[first : first + BATCH]
        longest = len(batch[-1][0])
        ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in batch])
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
        logits_BTV = model(ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), use_cache=False).logits
        for (ids, start), logits_TV in zip(batch, logits_BTV, strict=True):
            target_C = torch.tensor(ids[start:], device=logits_TV.device)
            logits_CV = logits_TV[start - 1 : len(ids) - 1].float()
            loss += torch.nn.functional.cross_entropy(logits_CV, target_C, reduction="sum").item()
            n_tokens += len(target_C)
            right = (logits_CV.argmax(-1) == target_C).tolist()
            closed = next((i + 1 for i, token in enumerate(ids[start:]) if token in ends), len(right))
            exact += all(right[:closed])
    return {
        "loss": loss / n_tokens, "exact_match": exact / len(examples), "n": len(examples), "n_tokens": n_tokens,
        **finished_answers(model, tokenizer, examples[:ANSWERS], end_ids),
    }  # fmt: skip


@torch.inference_mode()
def finished_answers(
    model: Any, tokenizer: Any, examples: Sequence[Example], end_ids: Sequence[int]
) -> dict[str, float | int]:
    """Samples greedy answers and counts those that end.

    Ignores the model's own generation config, which may sample at random, or forbid tokens.

    Returns:
        {"finished": share of the answers that end with an end token within answer_tokens, "answers": their number,
        "answer_tokens": the most tokens of an answer}.
    """
    encoded = [completion_tokens(tokenizer, e) for e in examples]
    prompts = tokenizer.apply_chat_template(
        [e.prompt for e in examples], add_generation_prompt=True, return_dict=True
    )["input_ids"]  # fmt: skip
    answer_tokens = ROOM * max(len(ids) - start for ids, start in encoded)
    if context := getattr(model.config.get_text_config(), "max_position_embeddings", None):
        answer_tokens = max(1, min(answer_tokens, context - max(map(len, prompts))))
    original_config, n_finished = model.generation_config, 0
    model.generation_config = GenerationConfig()
    greedy = GenerationConfig(
        max_new_tokens=answer_tokens, do_sample=False, eos_token_id=list(end_ids), pad_token_id=tokenizer.pad_token_id
    )
    for first in range(0, len(prompts), BATCH):
        batch = tokenizer.pad(
            {"input_ids": prompts[first : first + BATCH]}, padding_side="left", return_tensors="pt"
        ).to(model.device)  # fmt: skip
        answers = model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]
        n_finished += sum(not set(ids).isdisjoint(end_ids) for ids in answers.tolist())
    model.generation_config = original_config
    return {"finished": n_finished / len(prompts), "answers": len(prompts), "answer_tokens": answer_tokens}
