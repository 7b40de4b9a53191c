"""Builders of tiny random models and their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build_tokenizer(folder: Path, chat: bool = True) -> Any:
    """A byte-level BPE of 600 tokens, trained on the small set."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    data = ROOT / "eval" / "data"
    bpe = ByteLevelBPETokenizer()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    bpe.train([str(data / "preferences" / "pairs.jsonl")], vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Llama of a few thousand parameters with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(folder)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    } | changes  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    return folder


def build_reward_model(model: Path, folder: Path, seed: int) -> Path:
    """The model with a random reward head, and its tokenizer."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(seed)
    LlamaForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def save_gguf(model_folder: Path, path: Path, architecture: str = "llama") -> Path:
    """The tiny Llama as a GGUF file in fp32, as llama.cpp's converter lays it out."""
    import numpy as np
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    c, writer = model.config, GGUFWriter(str(path), architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if i in special or i < 5 else 1 for i in range(len(tokenizer))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "model.layers": "blk"}  # fmt: skip
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        for heads, part in ((c.num_attention_heads, "q_proj"), (c.num_key_value_heads, "k_proj")):
            if part in name:  # llama.cpp's order of the rotated halves
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packs_bf16() -> bool:
    """Whether this processor has the packed products in bf16 that the fused tier is made of (AVX-512)."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 64, dtype=torch.bfloat16), 64)
    except (AttributeError, RuntimeError):
        return False
    return True
