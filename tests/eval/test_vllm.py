"""--scorer vllm: the transformers scorer's numbers, refusals in a line, and no process left behind.

vLLM runs in an environment of its own (`make vllm`), so it is called as a user calls it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.__main__ import main
from eval.commands.run_config import RunConfig
from eval.errors import InputError
from eval.models.checkpoints import load_checkpoint
from eval.runner.keys import Key, record_key
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.scorers.local.transformers import TransformersScorer
from eval.scorers.vllm.vllm import check_adapter
from eval.types import Record
from tests.support.interrupts import heed_interrupts
from tests.support.tiny_models import build_model

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SELFCORRECT_VLLM", ROOT / ".venv-vllm")) / "bin" / "python"
FEW = ("--limit", "4", "--categories", "Age", "--cot_limit", "4", "--cot_max_new_tokens", "8", "--sample_batch", "4")


@pytest.fixture(scope="module")
def tiny_32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with heads of 32 numbers: vLLM's CPU kernels take no smaller ones."""
    return build_model(tmp_path_factory.mktemp("vllm") / "tiny", head_dim=32)


def started(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [PYTHON, "-m", "eval", "run", *map(str, arguments), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **more)


def vllm_run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """`eval run --scorer vllm` -> (exit status, the object of --json, its error line)."""
    out, err = (process := started("--scorer", "vllm", *arguments)).communicate(timeout=600)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert process.returncode == 0 or lines, err[-3000:]
    return process.returncode, json.loads(out) if out else {}, "".join(lines)


def transformers_run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", "run", *map(str, arguments)])
    main()


def records(folder: Path) -> dict[Key, Record]:
    return {record_key(r): r for r in Store(folder).read()}


def differences(a: dict[Key, Record], b: dict[Key, Record]) -> np.ndarray:
    """Of the log-probabilities of all records without reasoning, whatever is the same of both being checked."""
    assert a.keys() == b.keys()
    for key in a:
        for name in ("prompt_sha256", "candidates", "prompt_tokens", "boundary_moved"):
            assert a[key].get(name) == b[key].get(name) or "reasoning" in a[key], (key, name)
    pairs = [(a[k]["logprobs"], b[k]["logprobs"]) for k in a if "reasoning" not in a[k]]
    return np.abs(np.concatenate([np.subtract(x, y) for x, y in pairs]))


@pytest.mark.vllm
@pytest.mark.parametrize("style", ["chat", "paper"])
def test_the_same_numbers_as_transformers(tiny_32: Path, tmp_path: Path, monkeypatch, ended: Callable, style) -> None:
    asked = ("--model", tiny_32, *FEW, "--dtype", "float32", "--format", style)
    status, told, _ = vllm_run(*asked, "--output", tmp_path / "vllm")
    assert status == 0 and told["scorer"] == "vllm" and re.match(r"\d+\.\d+", told["versions"]["vllm"])
    assert (told["dtype"], told["device"], told["tier"], told["format"]) == ("float32", "cpu", None, style)
    transformers_run(monkeypatch, *asked, "--output", tmp_path / "transformers")
    ours = json.loads((tmp_path / "transformers" / "summary.json").read_text())
    assert "vllm" not in ours["versions"]
    for name in ("weights", "config_sha256", "tokenizer_sha256", "system_turn", "model_params", "records"):
        assert told[name] == ours[name], name
    found = records(tmp_path / "vllm")
    assert differences(found, records(tmp_path / "transformers")).max() < 1e-4
    reasoned = {key: r for key, r in found.items() if "reasoning" in r}
    assert len({r["reasoning"] for r in reasoned.values()}) > 3
    questions = {q.key: q for q in plan(RunConfig(model=["m"], limit=4, categories=["Age"], cot_limit=4)).questions}
    loaded = load_checkpoint(str(tiny_32), dtype="float32")
    scorer = TransformersScorer(loaded.model, loaded.tokenizer, style)
    keys = list(reasoned)
    for i, answer in scorer.score([questions[k].prompt(reasoned[k]["reasoning"]) for k in keys]):
        assert np.abs(answer.logprobs - reasoned[keys[i]]["logprobs"]).max() < 1e-4
    line = ended(main, "run", *asked, "--output", tmp_path / "vllm")  # of the other scorer
    assert 'another scorer ("vllm" there, "transformers" now)' in line
    if style == "chat":
        assert vllm_run(*asked, "--output", tmp_path / "vllm")[1] == told


@pytest.mark.vllm
@pytest.mark.real_model
@pytest.mark.parametrize(("dtype", "mean", "most"), [("float32", 1e-4, 1e-3), ("bfloat16", 0.1, 0.5)])
def test_the_real_model(real_model: Path, tmp_path: Path, monkeypatch, dtype, mean, most) -> None:
    asked = ("--model", real_model, "--limit", "8", "--categories", "Age", "--orders", "1", "--dtype", dtype,
             "--conditions", "Q,Q+IF", "--experiments", "bbq,winogender")  # fmt: skip
    vllm_run(*asked, "--output", tmp_path / "vllm")
    transformers_run(monkeypatch, *asked, "--output", tmp_path / "transformers")
    found = differences(records(tmp_path / "vllm"), records(tmp_path / "transformers"))
    assert found.mean() < mean and found.max() < most


@pytest.mark.vllm
def test_an_adapter(tiny_32: Path, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False,
                      rank_pattern={"q_proj": 12}, alpha_pattern={"v_proj": 3})  # fmt: skip
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_32), lora).save_pretrained(str(tmp_path / "lora"))
    asked = ("--model", tiny_32, *FEW, "--dtype", "float32", "--conditions", "Q,Q+IF")
    with_it = ("--adapter", tmp_path / "lora")
    transformers_run(monkeypatch, *asked, "--output", tmp_path / "base")
    transformers_run(monkeypatch, *asked, *with_it, "--output", tmp_path / "transformers")
    vllm_run(*asked, *with_it, "--output", tmp_path / "vllm")
    found = records(tmp_path / "vllm")
    assert differences(found, records(tmp_path / "transformers")).max() < 1e-4
    assert differences(found, records(tmp_path / "base")).max() > 0.1


@pytest.mark.vllm
def test_several_models_in_one_process(tiny_32: Path, tmp_path: Path) -> None:
    """The engine is started anew for each; what vLLM would not notice is refused, and the rest is done."""
    other = build_model(tmp_path / "other", seed=3, head_dim=32, num_hidden_layers=3)
    broken = build_model(tmp_path / "broken", head_dim=32)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    small_heads = build_model(tmp_path / "small-heads")
    models = [word for m in (tiny_32, broken, small_heads, other) for word in ("--model", m)]
    status, told, line = vllm_run(*models, *FEW, "--experiments", "winogender", "--conditions", "Q", "--dtype",
                                  "float32", "--output", tmp_path / "out")  # fmt: skip
    assert status == 2 and "2 of 4 checkpoints failed" in line
    missing, heads = [f["error"] for f in told["failed"]]
    assert "no weights for 1 tensors" in missing and "up_proj" in missing
    assert "cannot be started by vLLM" in heads and "head_dim=8" in heads
    assert [d["scorer"] for d in told["done"]] == ["vllm", "vllm"]


def of_session(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, sid, state in rows if int(sid) == session and not state.startswith("Z")]


@pytest.mark.vllm
def test_killed_and_interrupted_it_leaves_nothing_and_goes_on(tiny_32: Path, tmp_path: Path) -> None:
    asked = ("--model", tiny_32, *FEW, "--dtype", "float32", "--experiments", "bbq", "--limit", "16")
    long = ("--cot_limit", "16", "--cot_max_new_tokens", "400")
    for number, signum in enumerate((signal.SIGKILL, signal.SIGINT), 1):
        process = started(
            "--scorer",
            "vllm",
            *asked,
            *long,
            "--output",
            tmp_path / "out",
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        there, until = sum(1 for _ in Store(tmp_path / "out").read()), time.monotonic() + 600
        while sum(1 for _ in Store(tmp_path / "out").read()) == there and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signum)
        out, err = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if number == 1 else 130) and out == ""
        assert number == 1 or "run the same command again" in err
        until = time.monotonic() + 60
        while left := of_session(process.pid):
            assert time.monotonic() < until, left
            time.sleep(0.5)
    kept = records(tmp_path / "out")
    status, told, _ = vllm_run(*asked, *long, "--output", tmp_path / "out")
    assert status == 0 and len(told["sessions"]) == 3
    done = records(tmp_path / "out")
    assert len(done) > len(kept) and all(done[key] == kept[key] for key in kept)


SAMPLER = """
import json, sys
from eval.runner.plan import plan
from eval.types import Prompt, Turn
from eval.commands.run_config import RunConfig
from eval.scorers.registry import open_target
from eval.commands.targets import targets
config = RunConfig(model=[sys.argv[1]], scorer="vllm", format="paper", dtype="float32", limit=2, output=sys.argv[2])
scorer, _ = open_target(targets(config)[1][0], config, plan(config)).load()
prompt = Prompt((Turn("human", "Is it?"), Turn("assistant", "It is")))
texts = dict(scorer.sample([prompt] * 800, [7 * i + 2**47 for i in range(800)], 1))
again = dict(scorer.sample([prompt] * 20, [7 * i + 2**47 for i in range(20)], 1))
assert all(again[i] == texts[i] for i in again)
print(json.dumps([texts[i] for i in range(800)]))
"""


@pytest.mark.vllm
def test_samples_are_of_the_whole_distribution_and_of_their_seed(tiny_32: Path, tmp_path: Path) -> None:
    command = [PYTHON, "-c", SAMPLER, tiny_32, tmp_path]
    texts = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_32, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_32)
    ids = tokenizer("\n\nHuman: Is it?\n\nAssistant: It is", return_tensors="pt").input_ids
    probabilities = torch.softmax(model(ids).logits[0, -1].double(), -1).tolist()
    expected: dict[str, float] = {}
    for token, p in enumerate(probabilities):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        expected[text] = expected.get(text, 0.0) + p * len(texts)
    often = [t for t in expected if expected[t] >= 5]
    seen = [texts.count(t) for t in often]
    wanted = [expected[t] for t in often]
    rest = len(texts) - sum(wanted)
    assert len(often) > 5 and rest > 5
    assert stats.chisquare([*seen, len(texts) - sum(seen)], [*wanted, rest]).pvalue > 1e-4


def test_what_stands_in_the_options(ended: Callable) -> None:
    for given, said in (
        ("[1]", "must be a mapping"),
        ("{", "must be a mapping"),
        ('{"dtype": "half"}', "dtype is given by --dtype"),
        ("quantization: fp8", "quantization is not taken, since it could change the numbers"),
    ):
        assert said in ended(main, "run", "--model", "m", "--scorer", "vllm", "--vllm_options", given)
    assert "--tensor_parallel_size belongs to --scorer vllm" in ended(
        main, "run", "--model", "m", "--tensor_parallel_size", "2"
    )
    assert "tensor_parallel_size must be at least 1" in ended(
        main, "run", "--model", "m", "--tensor_parallel_size", "0"
    )
    assert RunConfig(model=["m"], scorer="vllm", vllm_options="max_model_len: 64").vllm_arguments() == {
        "max_model_len": 64
    }


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vllm_options", '{"max_modellen": 64}'), "no argument 'max_modellen'; did you mean 'max_model_len'?"),
        (("--vllm_options", '{"max_model_len": 64}'), "has a context of 64 tokens, and a question of"),
    ],
)
def test_what_vllm_does_not_take_is_one_line(tiny_32: Path, tmp_path: Path, arguments, said) -> None:
    status, told, line = vllm_run("--model", tiny_32, *FEW, *arguments, "--output", tmp_path / "out")
    assert status == 2 and told == {} and said in line


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed in this environment")
def test_without_vllm_the_line_says_how_to_get_it(tiny: Path, tmp_path: Path, ended: Callable) -> None:
    line = ended(main, "run", "--model", tiny, "--scorer", "vllm", "--output", tmp_path / "out")
    assert "not installed" in line and "`make vllm`" in line


def test_adapters_of_which_a_part_would_be_left_out(tiny: Path, tmp_path: Path) -> None:
    q = ["q_proj"]
    for name, lora in (
        ("modules_to_save", LoraConfig(target_modules=q, modules_to_save=["embed_tokens"])),
        ("biases", LoraConfig(target_modules=q, bias="all")),
    ):
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora).save_pretrained(str(tmp_path / name))
        with pytest.raises(InputError, match=f"cannot be served by vLLM .{name}.; merge it into its base"):
            check_adapter(str(tmp_path / name))
