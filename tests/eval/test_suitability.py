"""What cannot be scored rightly is refused in one line, before anything is scored."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import errors
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from eval.__main__ import main
from eval.errors import InputError
from eval.models import hub
from eval.models.checkpoints import base_parameters, load_checkpoint
from eval.scorers.local.memory import CPU_TOKENS, MAX_TOKENS, MIN_TOKENS, affordable_tokens
from tests.support.tiny_models import build_model, build_tokenizer


@pytest.fixture
def refused(ended, tmp_path: Path):
    """Runs `eval run` on a model that cannot be evaluated; nothing may have been scored."""

    def run(model: object, *more: object) -> str:
        output = tmp_path / "results"
        line = ended(main, "run", "--model", model, "--output", output, "--limit", 4, *more)
        assert not list(output.rglob("*.json*"))
        return line

    return run


def tiny_copy(tiny: Path, folder: Path, **changes: Any) -> Path:
    """The tiny model's folder with other entries in its config.json."""
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_encoders_and_sequence_to_sequence(refused, tmp_path: Path) -> None:
    bert = BertConfig(vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    build_tokenizer(tmp_path / "bert")
    assert "is an encoder-only model (BertForMaskedLM)" in refused(tmp_path / "bert")
    t5 = T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    build_tokenizer(tmp_path / "t5")
    assert "is a sequence-to-sequence model (T5ForConditionalGeneration)" in refused(tmp_path / "t5")


def test_other_heads_and_missing_weights(refused, tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """A reward model with tied embeddings would load without a missing weight; a bare model would get a random head."""
    assert "without a language model's head (LlamaForSequenceClassification)" in refused(tiny_reward)
    tied = build_model(tmp_path / "tied", tie_word_embeddings=True)
    LlamaForSequenceClassification.from_pretrained(tied, num_labels=1).save_pretrained(tmp_path / "judge")
    build_tokenizer(tmp_path / "judge")
    assert "without a language model's head" in refused(tmp_path / "judge")
    LlamaModel.from_pretrained(tiny).save_pretrained(tmp_path / "bare")
    build_tokenizer(tmp_path / "bare")
    assert "no weights for 1 tensors of a causal language model, such as lm_head.weight" in refused(tmp_path / "bare")
    cut = tiny_copy(tiny, tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, cut / "model.safetensors", {"format": "pt"})
    assert "such as model.layers.1.mlp.up_proj.weight" in refused(cut)
    load_checkpoint(str(tied))


def test_damaged_weights(refused, tiny: Path, tmp_path: Path) -> None:
    damaged = tiny_copy(tiny, tmp_path / "damaged")
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in refused(damaged)


def test_tokenizers_that_do_not_belong(refused, tiny: Path, tmp_path: Path) -> None:
    small = build_model(tmp_path / "small", vocab_size=500)
    assert "has 500 tokens and its tokenizer" in refused(small)
    added = build_model(tmp_path / "added")
    tokenizer = build_tokenizer(added)
    tokenizer.add_tokens(["(a)"])
    tokenizer.save_pretrained(added)
    line = refused(added, "--experiments", "bbq", "--conditions", "Q")
    assert "'(a)'" in line and "tokens 0 to" in line


def word_tokenizer(folder: Path, words: str) -> None:
    """A tokenizer that knows these words and letters only; everything else is its unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {w: i for i, w in enumerate(dict.fromkeys(["[UNK]", "[END]", *words.split()]))}
    inner = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    shutil.rmtree(folder / "tokenizer.json", ignore_errors=True)
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[END]").save_pretrained(folder)


def test_answers_that_the_tokenizer_does_not_have(refused, tiny: Path, tmp_path: Path) -> None:
    folder = tiny_copy(tiny, tmp_path / "words")
    (folder / "chat_template.jinja").unlink()
    word_tokenizer(folder, "Human Assistant : the yes")
    line = refused(folder, "--experiments", "admissions", "--conditions", "Q")
    assert "its tokenizer does not know the answer" in line and "no'" in line


def test_chat_without_a_template(refused, tiny: Path, tmp_path: Path, monkeypatch, caplog, capsys) -> None:
    folder = tiny_copy(tiny, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template; use --format paper" in refused(folder, "--format", "chat")
    arguments = ["eval", "run", "--model", str(folder), "--output", str(tmp_path / "o"), "--limit", "4"]
    monkeypatch.setattr("sys.argv", [*arguments, "--experiments", "winogender", "--conditions", "Q"])
    with caplog.at_level(logging.WARNING):
        main()
    assert "has no chat template, so questions are in the paper's format" in caplog.text
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["format"] == "paper"


def test_context_that_is_too_short(refused, tmp_path: Path) -> None:
    short = build_model(tmp_path / "short", max_position_embeddings=500)
    arguments = ("--experiments", "winogender", "--conditions", "Q,Q+IF+CoT")
    line = refused(short, *arguments, "--cot_max_new_tokens", 450)
    assert "has a context of 500 tokens" in line and "with 450 tokens of reasoning; lower --cot_max_new_tokens" in line
    tiny_context = build_model(tmp_path / "shorter", max_position_embeddings=40)
    assert "has a context of 40 tokens" in refused(tiny_context, "--conditions", "Q")


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("executed")
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""


def test_code_of_the_repository_is_not_executed(refused, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """Not without being told to; told to, it is, and the provenance says so."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    names = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    folder = tiny_copy(tiny, tmp_path / "own", model_type="own", auto_map=names, architectures=["OwnModel"])
    mark = tmp_path / "mark"
    model = (
        "from transformers import LlamaForCausalLM\nclass OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (folder / "code.py").write_text(CODE.format(mark=str(mark)) + model)
    assert "if you trust it add --trust_remote_code" in refused(folder)
    assert not mark.exists()
    loaded = load_checkpoint(str(folder), trust_remote_code=True)
    assert mark.exists() and loaded.provenance["trust_remote_code"] is True
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.model(ids).logits, LlamaForCausalLM.from_pretrained(tiny)(ids).logits)


def test_an_adapter_that_adds_tokens_is_refused(refused, tiny: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    tuned.save_pretrained(str(tmp_path / "prompt"))
    assert "adds tokens to every prompt; give a LoRA" in refused(tiny, "--adapter", tmp_path / "prompt")


def test_a_size_that_cannot_be_counted_is_none(tiny: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    assert base_parameters(model) == model.num_parameters()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert base_parameters(model) is None


def http(kind: type, status: int) -> Exception:
    request = httpx2.Request("GET", "https://huggingface.co/lab/model/resolve/main/config.json")
    return kind("said by the hub", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http(errors.GatedRepoError, 403), "lab/model is gated: ask for access on https://huggingface.co/lab/model"),
        (http(errors.RepositoryNotFoundError, 404), "is neither a local folder nor on the hub, or it is private"),
        (http(errors.RevisionNotFoundError, 404), "lab/model has no revision 'step7'"),
        (errors.RevisionResolutionError("no"), "run `hf download lab/model --revision step7` where there is network"),
        (httpx2.ConnectError("no route"), "cannot be fetched: no route"),
    ],
)
def test_a_hub_that_does_not_give_it(refused, monkeypatch, error: Exception, said: str) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "resolve_revision", resolve)
    assert said in refused("lab/model", "--revision", "step7")


def test_errors_below_an_oserror_of_transformers_are_found() -> None:
    """A gated repository's commit is public: only its files are refused, and transformers wraps that."""
    for error, said in ((http(errors.GatedRepoError, 403), "is gated"), (errors.LocalEntryNotFoundError("x"), "cache")):
        try:
            raise OSError("something about tokens") from error
        except OSError as wrapped:
            assert said in hub.explain_hub_error(wrapped, "lab/model")


def test_half_precision_on_a_cpu(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for dtype in ("float16", "bfloat16"):
        arguments = ["--model", str(tiny), "--dtype", dtype, "--device", "cpu", "--output", str(tmp_path / dtype)]
        more = ["--limit", "4", "--experiments", "winogender", "--conditions", "Q", "--json"]
        monkeypatch.setattr("sys.argv", ["eval", "run", *arguments, *more])
        capsys.readouterr()
        main()
        assert json.loads(capsys.readouterr().out)["dtype"] == dtype


def test_tokens_that_fit_into_free_memory(tiny: Path) -> None:
    """More memory, more tokens; a larger model, fewer; within bounds, and a number that halves evenly."""
    small = LlamaForCausalLM.from_pretrained(tiny).config
    large = type(small)(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, vocab_size=128_256)
    gib = 2**30
    found = [affordable_tokens(free * gib, large, 2) for free in (1, 16, 40, 79)]
    assert found == sorted(found) and found[0] == MIN_TOKENS and MIN_TOKENS < found[2] < found[3] <= MAX_TOKENS
    assert affordable_tokens(79 * gib, small, 2) == MAX_TOKENS
    assert all(n & (n - 1) == 0 for n in found)
    assert affordable_tokens(79 * gib, object(), 2) == CPU_TOKENS


def test_batch_tokens_that_are_no_number(refused, tiny: Path) -> None:
    with pytest.raises(InputError, match="batch_tokens must be auto or a number"):
        from eval.config import EvaluationConfig

        EvaluationConfig(batch_tokens="many")
    assert "batch_tokens must be auto or a number of at least 1, not '0'" in refused(tiny, "--batch-tokens", 0)
