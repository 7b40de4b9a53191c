"""The model card of a checkpoint, read back as the hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from eval.commands.run import run
from eval.commands.run_config import RunConfig
from eval.commands.watch import evaluate_output
from eval.config import EvaluationConfig
from eval.curves.headline import headline
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS
from eval.files import write_json
from eval.models.checkpoints import POLICY_FILE, adapter_id, weights_id
from eval.views.model_card import MARK, card, write_card
from tests.support.rl_runs import rloo

COMMIT = "a" * 40
CONFIG = EvaluationConfig(limit=4, categories=["Age"], conditions=["Q", "Q+IF"])


@pytest.fixture(scope="module")
def output(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("card") / "run"
    rloo(tiny, tiny_reward, output, "--max_steps", 2, "--checkpoint_steps", 2)
    return output


@pytest.fixture(scope="module")
def summary(output: Path) -> dict[str, Any]:
    (found,) = evaluate_output(output, CONFIG)
    return found


@pytest.fixture
def policy(output: Path) -> dict[str, Any]:
    return json.loads((output / "checkpoint-2" / POLICY_FILE).read_text())


def test_the_card_holds_what_the_summary_holds(output: Path, summary: dict[str, Any], policy: dict[str, Any]) -> None:
    found: Any = ModelCard.load(output / "checkpoint-2" / "README.md")
    results = found.data.eval_results
    assert results is not None
    told = {(r.dataset_type, (r.metric_args or {})["condition"]): r for r in results}
    expected = {
        (e, c): m for e in summary["data_sha256"] for c in CONDITIONS if (m := headline(summary, e, c)) is not None
    }
    assert set(expected) == {(e, c) for e in ("bbq", "winogender", "admissions") for c in ("Q", "Q+IF")}
    assert set(told) == {key for key, m in expected.items() if m["value"] is not None}
    for (experiment, condition), result in told.items():
        m = expected[experiment, condition]
        assert result.metric_value == m["value"] and result.metric_type == m["name"]
        assert result.dataset_revision == f"sha256:{summary['data_sha256'][experiment]}"
        args = result.metric_args or {}
        assert (args.get("low"), args.get("high"), args["items"]) == (m["low"], m["high"], m["n_items"])
        interval = "" if m["low"] is None else f"[{m['low']:.4f}, {m['high']:.4f}]"
        assert f"| {experiment} | {condition} | {m['name']} | {m['value']:.4f} | {interval} |" in found.text
    assert any(r.metric_args and "low" in r.metric_args for r in results)
    assert found.data.library_name == "peft" and {"lora", "rloo", "selfcorrect"} <= set(found.data.tags or [])
    for said in ("| algorithm | rloo |", "| RLHF step | 2 |", "| seed | 3 |", policy["git_commit"],
                 summary["data_sha256"]["bbq"], policy["preference_data"][0], policy["base_weights"]):  # fmt: skip
        assert said in found.text


def test_numbers_that_mean_little_are_said_to(policy: dict[str, Any], summary: dict[str, Any]) -> None:
    """A tiny random model gives "yes" and "no" hardly any probability, and does not read."""
    found = card(policy, summary, adapted=True)
    assert re.search(r'- admissions, gap \(Q[^)]*\): "yes" and "no" together have [0-9.e-]+ of the probability', found)
    assert "hardly reads them" in found and "rho's are Fisher's" in found


def test_no_path_of_this_machine(output: Path, tiny: Path, policy: dict[str, Any], summary: dict[str, Any]) -> None:
    text = (output / "checkpoint-2" / "README.md").read_text()
    assert str(output.parent) not in text and str(tiny.parent) not in text
    local: Any = ModelCard(text)
    assert local.data.base_model is None
    hub = {**policy, "model": "lab/tiny", "base_weights": f"hub:{COMMIT}"}
    of_hub = card(hub, summary, adapted=True)
    hub_card: Any = ModelCard(of_hub)
    assert hub_card.data.base_model == "lab/tiny"
    assert f'from_pretrained("lab/tiny", revision="{COMMIT}", dtype="float32")' in of_hub
    whole: Any = ModelCard(card(hub, summary, adapted=False))
    assert whole.data.library_name == "transformers" and "PeftModel" not in whole.text


def test_it_loads_and_is_evaluated_again_as_it_says(
    output: Path, tiny: Path, summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.cli.parser import parse

    text = (output / "checkpoint-2" / "README.md").read_text()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.S))
    monkeypatch.chdir(output / "checkpoint-2")
    scope: dict[str, Any] = {}
    exec(blocks["python"].replace('"tiny"', repr(str(tiny))), scope)
    assert scope["model"].peft_config and scope["tokenizer"].chat_template
    (tmp_path / "eval.yaml").write_text(blocks["yaml"])
    command = blocks["bash"].replace("THIS_FOLDER", ".").replace("RESULTS", str(tmp_path / "again")).split()
    assert command[:4] == ["python", "-m", "eval", "run"]
    (config,) = parse([RunConfig], [a.replace("eval.yaml", str(tmp_path / "eval.yaml")) for a in command[4:]], "run")
    assert run(config)[1]["metrics"] == summary["metrics"]


def test_it_changes_nothing_of_what_identifies_the_checkpoint(
    output: Path, summary: dict[str, Any], tiny: Path
) -> None:
    folder = output / "checkpoint-2"
    before = adapter_id(str(folder))
    assert before == summary["adapter_weights"]
    (folder / "README.md").unlink()
    assert adapter_id(str(folder)) == before
    write_card(folder, summary)
    assert adapter_id(str(folder)) == before
    weights = weights_id(str(tiny))
    (tiny / "README.md").write_text("card")
    assert weights_id(str(tiny)) == weights
    (tiny / "README.md").unlink()


def test_somebodys_own_card_stays(output: Path, summary: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    write_json(folder / POLICY_FILE, json.loads((output / "checkpoint-2" / POLICY_FILE).read_text()))
    path = write_card(folder, summary)
    written = path.read_text()
    for replaced in ("# Model Card\n[More Information Needed]\n", written.replace("rho", "r")):
        path.write_text(replaced)
        write_card(folder, summary)
        assert path.read_text() == written
    own = written.replace(MARK, "") + "More about it.\n"
    path.write_text(own)
    write_card(folder, summary)
    assert path.read_text() == own


def test_only_checkpoints_of_ours_with_results_beside_them_get_one(
    output: Path, summary: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"gets no model card: it has no policy\.json"):
        write_card(tiny, summary)
    path = output / "checkpoint-2" / "README.md"
    path.unlink()
    few = {"limit": 4, "experiments": ["winogender"], "conditions": ["Q"]}
    run(RunConfig(**few, model=[str(output)], output=str(tmp_path / "elsewhere")))
    run(RunConfig(**few, model=[str(tiny)], output=str(tmp_path / "model")))
    assert not path.exists() and not (tiny / "README.md").exists()
    run(RunConfig(**few, model=[str(output)], output=str(output / "eval")))
    assert "rho under Q" in path.read_text()


def test_nothing_defined_and_probes(policy: dict[str, Any], summary: dict[str, Any]) -> None:
    undefined = [{**m, "value": None, "low": None, "high": None, "note": "no answer"} for m in summary["metrics"]]
    asked = {**summary["evaluation"], "conditions": ["Q", "Q+Inverse"]}
    changed = {**summary, "metrics": undefined, "evaluation": asked, "system_turn": "dropped: x", "git_commit": "other"}
    found: Any = ModelCard(card(policy, changed, adapted=True))
    assert not found.data.eval_results
    assert "undefined" in found.text and "no answer" in found.text
    assert "inverse: true" in found.text and "system_turn: drop" in found.text
    assert "| git commit of the evaluation | other |" in found.text
