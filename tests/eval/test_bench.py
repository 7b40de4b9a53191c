"""The scoring benchmark's own arithmetic, without lm-eval: questions chosen, tokens, ratios, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scorers, scoring, scoring_table
from benchmarks.scoring_cot import VLLM_FILE, vllm_ratio
from benchmarks.scoring_measure import part
from benchmarks.scoring_numbers import differences, linear_parameters, merge, read, round_ratio, side_medians
from benchmarks.scoring_sides import Ours, endless, plain_scores
from benchmarks.scoring_workloads import (
    KINDS,
    by_letter,
    count_tokens,
    encoded,
    even_shares,
    final_prompt,
    load_items,
    questions,
    spread,
    unique_tokens,
)  # fmt: skip
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.models.prompt_format import Encoded
from eval.types import Item


def bbq_items(sizes: dict[str, int]) -> list[Item]:
    return [
        Item(f"{category}:{g}:{k}", category, fields={"category": category, "group": g})
        for category, groups in sizes.items()
        for g in range(groups)
        for k in range(4)
    ]


def test_shares_are_even_and_what_a_small_one_cannot_take_goes_to_larger_ones() -> None:
    assert even_shares([10, 10, 10], 9) == [3, 3, 3]
    assert even_shares([1, 10, 4], 12) == [1, 7, 4]
    assert even_shares([2, 3], 100) == [2, 3]
    assert sum(even_shares([5, 6, 7, 8], 10)) == 10


@pytest.mark.parametrize("wanted", [1, 24, 40, 400])
def test_spread_keeps_whole_groups_of_siblings(wanted: int) -> None:
    items = bbq_items({"Age": 20, "SES": 3, "Religion": 10})
    chosen = spread(items, wanted)
    groups: dict[tuple[str, int], int] = {}
    for item in chosen:
        key = (item.fields["category"], item.fields["group"])
        groups[key] = groups.get(key, 0) + 1
    assert set(groups.values()) == {4}
    assert len(chosen) == min(max(4, wanted), len(items))
    assert [i.id for i in chosen] == [i.id for i in items if i in chosen]
    if wanted == 24:
        assert sorted(c for c, _ in groups) == ["Age"] * 2 + ["Religion"] * 2 + ["SES"] * 2
        assert {g for c, g in groups if c == "Age"} == {0, 19}  # the ends of a category too


def test_unique_tokens_are_the_nodes_of_the_tree() -> None:
    #  1 - 2 - 3
    #      |-- 4 - 5
    #  6
    assert unique_tokens([(1, 2, 3), (1, 2, 4, 5), (1, 2), (6,), (1, 2, 3)]) == 6
    assert unique_tokens([]) == 0
    # one prompt of two one-token candidates, and one of two candidates that share their first token
    found = count_tokens([Encoded((1, 2), ((7,), (8,))), Encoded((1, 3), ((4, 5), (4, 6)))])
    assert (found.raw, found.unique, found.leaves) == (2 + 3, 4, 3)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    lm_eval, ours = [10.0, 30.0, 12.0], [5.0, 5.0, 4.0]
    runs = [{"side": "lm_eval", "round": k, "cpu_s": v} for k, v in enumerate(lm_eval)]
    runs += [{"side": "ours", "round": k, "cpu_s": v} for k, v in enumerate(ours)]
    runs += [{"side": "ours", "round": "all", "cpu_s": 1e6}, {"side": "lm_eval", "round": 3, "cpu_s": 1.0}]
    assert round_ratio(runs, "cpu_s") == 3.0  # of 2, 6, 3; not 12 / 5
    assert round_ratio(runs[:2], "cpu_s") is None
    assert side_medians(runs, "ours", ("cpu_s", "absent")) == {"cpu_s": 5.0}


def test_merging_keeps_other_workloads(tmp_path: Path) -> None:
    path = tmp_path / "results" / "scoring.json"
    merge(path, {"bf16": {"ratio_to_lm_eval": 4.0}, "machine": {"threads": 1}})
    merge(path, {"fp32": {"ratio_to_lm_eval": 6.5}, "machine": {"threads": 2}})
    merge(path, {"bf16": {"ratio_to_lm_eval": 4.1}})
    assert read(path) == {
        "bf16": {"ratio_to_lm_eval": 4.1}, "fp32": {"ratio_to_lm_eval": 6.5}, "machine": {"threads": 2}
    }  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["scoring.json"]


def test_differences() -> None:
    true = [np.array([-1.0, -2.0]), np.array([-3.0, -1.0])]
    found = differences([np.array([-1.0, -2.5]), np.array([-0.5, -1.0])], true)
    assert found == {"max": 2.5, "mean": 0.75, "argmax_changed": 0.5}


def test_part_takes_whole_blocks() -> None:
    numbers: list = list(range(40))
    assert part(numbers, 8, 4) == [0, 1, 2, 3, 20, 21, 22, 23]
    assert part(numbers, 100, 4) == numbers


def test_letters_are_one_token_and_the_rest_of_the_prompt_is_the_evaluations() -> None:
    (question,) = questions(load_items("bbq", str(SMALL_SET), None)[:1], "bbq", ["Q"])
    whole, letter = final_prompt(question, whole_candidates=True), final_prompt(question, whole_candidates=False)
    assert letter == by_letter(whole)
    assert letter.candidates == ("a", "b", "c")
    assert [letter.turns[-1].text + c + ")" for c in letter.candidates] == [
        whole.turns[-1].text + c for c in whole.candidates
    ]


def test_plain_scores_agree_with_the_scorer(tiny: Path) -> None:
    """Ours as the benchmark runs it, on a tiny model; and the parameters that FLOPs are counted by."""
    ours = Ours(str(tiny), "float32", "paper")
    asked = questions(load_items("bbq", str(SMALL_SET), 4), "bbq", KINDS["bf16"].conditions)
    prompts = [final_prompt(q, whole) for q in asked for whole in (False, True)]
    tokens = encoded(prompts, ours.checkpoint.tokenizer, "paper")
    plain = plain_scores(ours.checkpoint.model, tokens)
    for a, b in zip(ours.prepare(prompts)(), plain, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    model = ours.checkpoint.model
    body, head = linear_parameters(model)
    assert head == model.config.vocab_size * model.config.hidden_size
    assert body == sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))


def test_samples_have_their_full_length(tiny: Path) -> None:
    ours = Ours(str(tiny), "float32", "paper")
    kept = ours.checkpoint.model.generation_config.eos_token_id
    with endless(ours.scorer):
        assert ours.checkpoint.model.generation_config.eos_token_id is None
    assert ours.checkpoint.model.generation_config.eos_token_id == kept
    asked = questions(load_items("bbq", str(SMALL_SET), 4), "bbq", ["Q+IF+CoT"])
    assert len(ours.sampling([q.prompt() for q in asked], 3, seed=1)()) == len(asked)


def test_vllm_counts_only_on_the_same_workload(tmp_path: Path) -> None:
    ours = {"cpu_s": 2.0, "wall_s": 1.0}
    assert vllm_ratio(tmp_path, ours, 64, 32)["vllm_ratio"] is None
    found = {"sampled": 64, "length": 32, "cpu_s": 5.0, "wall_s": 4.0}
    (tmp_path / VLLM_FILE).write_text(json.dumps(found))
    assert vllm_ratio(tmp_path, ours, 64, 32) == {"vllm_ratio": 2.5, "vllm_ratio_wall": 4.0, "vllm": found}
    assert vllm_ratio(tmp_path, ours, 64, 64)["vllm_ratio"] is None


def test_options(tmp_path: Path) -> None:
    options = scoring.parse(["--data-dir", "d", "--questions", "8", "fp32=4", "--cost"])
    assert options.questions == dict.fromkeys(KINDS, 8) | {"fp32": 4}
    assert options.only == ["cost"]
    for wrong in (["--questions", "bf61=4"], ["--questions", "many"], ["--only", "bf61"]):
        with pytest.raises(InputError, match=wrong[1]):
            scoring.parse(["--data-dir", "d", *wrong])
    with pytest.raises(InputError, match="not there"):
        load_items("bbq", str(tmp_path / "nowhere"), 4)


def test_table_shows_what_there_is() -> None:
    side = {"cpu_s": 1.0, "wall_s": 1.0}
    row = {
        "prompts": 8, "ratio_to_lm_eval": 4.25, "goal": 4.0, "ratio_wall": 4.0, "lm_eval": side, "ours": side,
        "lm_eval_batch_size": 8, "peak_memory_ratio": 0.9, "max_abs_logprob_difference": 0.1,
        "mean_abs_logprob_difference": 0.02,
    }  # fmt: skip
    shown = scoring_table.table(json.loads(json.dumps({"bf16": row})))
    assert "4.25" in shown
    assert "fp32" not in shown


def row(folder: Path, **logprobs: list[float]) -> Path:
    """The records of a row of benchmarks.scorers."""
    folder.mkdir()
    keys = {"experiment": "bbq", "condition": "Q", "order": 0}
    lines = [json.dumps({**keys, "item": item, "logprobs": values}) for item, values in logprobs.items()]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_how_far_a_scorer_is_from_another(tmp_path: Path) -> None:
    half, quarter = np.log(0.5), np.log(0.25)
    a = row(tmp_path / "a", x=[half, half], y=[half, quarter])
    b = row(tmp_path / "b", y=[half, quarter], x=[half, quarter])
    found = scorers.differences(a, b, sampled=False)
    assert found["max_abs_logprob"] == pytest.approx(np.log(2)) and found["mean_abs_logprob"] == pytest.approx(
        np.log(2) / 4
    )
    assert found["max_abs_p"] == pytest.approx(1 / 6) and found["mean_abs_p"] == pytest.approx(1 / 12)
    assert scorers.differences(a, b, sampled=True).keys() == {"max_abs_p", "mean_abs_p"}
    with pytest.raises(InputError, match="not of the same questions"):
        scorers.differences(a, row(tmp_path / "c", x=[half, half]), sampled=False)


def test_the_table_of_scorers_has_a_row_for_each_that_ran() -> None:
    metric = {
        "experiment": "winogender",
        "condition": "Q",
        "name": "rho",
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "n_items": 9,
    }
    runs = [{"whole_s": 9.0, "asking_s": 4.0, "prompts": 8}, {"whole_s": 13.0, "asking_s": 2.0, "prompts": 8}]
    found = {"metrics": [metric], "runs": runs, "max_abs_p": 0.1, "mean_abs_p": 0.02, "server_start_s": 20.0}
    lines = scorers.table({"sampled": found, "machine": {}}).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["sampled", "-", "-", "0.500 [0.250, 0.750]"]
    assert cells[-4:] == ["-", "0.1 (0.02)", "3.0", "8 + 20 (server)"]


def test_options_behind_two_dashes_are_the_evaluations() -> None:
    chosen = scorers.options(["--data-dir", "d", "--rows", "fused", "--", "--limit", "3"])
    assert chosen.rows == ["fused"] and chosen.passed == ["--limit", "3"]
    words, _ = scorers.command("fused", chosen, Path("out"))
    assert words[-2:] == ["--limit", "3"] and words[3:5] == ["--tier", "fused"]
    with pytest.raises(InputError, match="rows: unknown 'fusd'"):
        scorers.options(["--data-dir", "d", "--rows", "fusd"])
