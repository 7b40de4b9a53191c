"""The report: one page that stands alone and tells what the results tell, and the table in the terminal."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.curves.cautions import caution_of, checkpoint_cautions, leading
from eval.curves.gather import Curve, gather, size_name
from eval.errors import InputError
from eval.files import write_json
from eval.validation.oracle import Oracle
from eval.views.page import text as page_text
from eval.views.page.data import CHARTED, Detail, breakdown, headline, page_data
from eval.views.page.examples import Words, checkpoints, examples, examples_html, normalised
from eval.views.page.report import MOST_BYTES, ReportConfig, build, embedded, fill, report
from tests.support.page_runs import Page, numbers, training

NASTY = 'She said </script><img src=x onerror="alert(1)"> & <!-- "{{title}}" ' + "long " * 900


class Nasty(Oracle):
    """Samples what would end a script element, or begin a comment, where it were not escaped."""

    def sample(self, prompts: Sequence[Any], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        yield from ((i, NASTY) for i in range(len(prompts)))

    def score(self, prompts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        known = {q.prompt(NASTY if q.condition.reasoning else None): q for q in self.questions}
        self.__dict__["_question_of"] = known
        return super().score(prompts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for params, seed in ((2_000_000, 0), (50_000_000, 0), (50_000_000, 1)):
        training(folder, params, seed)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training(tmp_path_factory.mktemp("one"), 3_000_000, 0, (20,), Nasty, inverse=True)


def written(folder: Path, output: Path, **more: Any) -> tuple[str, str, dict[str, Any]]:
    """Table, page and object of a report."""
    text, told = report(ReportConfig(runs=[str(folder)], output=str(output), **more))
    return text, Path(told["files"][-1]).read_text(), told


def changed(folder: Path, output: Path, **fields: Any) -> Path:
    """The results of a folder, without their records, with other fields in their summaries."""
    for path in sorted(folder.rglob("summary.json")):
        write_json(output / path.relative_to(folder), json.loads(path.read_text()) | fields)
    return output


def test_the_page_stands_alone(runs: Path, tmp_path: Path) -> None:
    text, html, told = written(runs, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"] and told["left_out"] == []
    assert len(html.encode()) < 2_000_000
    page = Page(html)
    assert page.loads == [] and not re.search(r"url\(\s*['\"]?http", html)
    assert "default-src 'none'" in html
    for tag in ("img", "iframe", "link"):
        assert tag not in page.tags
    said = (
        "for demonstration only, not comparable with published numbers", "Q+Match Stats", "data_sha256", "2,000,000",
        "discrimination against Black applicants", "above 0: answers follow the stereotype", "training seeds 0, 1",
        "Bias against RLHF step and size: tiny-2m, tiny-50m", "arXiv:2110.08193", "evaluation.seed",
    )  # fmt: skip
    everything = page.text + page.scripts[0]
    assert [s for s in said if s not in everything] == []
    assert "for demonstration only" in text and text.endswith(f"page: {tmp_path / 'report.html'}")


def test_every_headline_number_is_in_the_table(runs: Path, tmp_path: Path) -> None:
    text, _, _ = written(runs, tmp_path)
    blocks = text.split("\n\n")
    for curve, block in zip(gather([runs]), blocks, strict=True):
        assert block.startswith(f"{curve.name} ({size_name(curve.model_params)}, seed {curve.seed}), RLHF step\n")
        for summary in curve.summaries:
            for experiment, condition in (("bbq", "Q+IF+CoT"), ("winogender", "Q"), ("admissions", "Q+IF")):
                metric = headline(summary, experiment, condition)
                assert metric is not None and metric["value"] is not None
                row = next(
                    line for line in block.splitlines()
                    if line.split()[:3] == [str(summary["step"]), experiment, condition]
                )  # fmt: skip
                assert f"{metric['value']:.4f}" in row
                assert row.split()[-2] == str(metric["n_items"])


def test_the_page_holds_every_number_as_it_is(runs: Path, tmp_path: Path) -> None:
    data = Page(written(runs, tmp_path)[1]).data
    found = numbers(data)
    curves, place = gather([runs]), 0
    assert [c["name"] for c in data["curves"]] == [c.name for c in curves]
    total = 0
    for k, curve in enumerate(curves):
        for summary in curve.summaries:
            described = data["checkpoints"][place]
            assert (described["curve"], described["step"]) == (k, summary["step"])
            assert described["results"] == Path(summary["results"]).name and described["weights"] == f"{0:0>12}"
            for m in summary["metrics"]:
                shown = found[place, m["experiment"], m["condition"], m["name"], m["category"]]
                exact = [None if m[k] is None else float(f"{m[k]:.4f}") for k in ("value", "low", "high")]
                assert list(shown[:3]) == exact
                assert shown[3:] == (m["n_items"], m["n_clusters"], m["method"], m["note"])
                total += 1
            place += 1
    assert total == len(found) > 1000


def test_report_twice_gives_the_same_page(runs: Path, tmp_path: Path) -> None:
    assert written(runs, tmp_path / "a")[1] == written(runs, tmp_path / "b")[1]


def test_a_size_that_is_not_known_is_said(runs: Path, tmp_path: Path) -> None:
    folder = changed(next(runs.iterdir()), tmp_path / "r", model_params=None)
    _, html, _ = written(folder, tmp_path / "o")
    assert "number of parameters not known" in html
    assert Page(html).data["curves"][0]["params"] is None and "size not known" in html


def test_rho_that_is_undefined_is_said(runs: Path, tmp_path: Path) -> None:
    folder = changed(next(runs.iterdir()), tmp_path / "r")
    for path in folder.rglob("summary.json"):
        summary = json.loads(path.read_text())
        for m in summary["metrics"]:
            if (m["experiment"], m["condition"], m["name"]) == ("winogender", "Q", "rho"):
                m |= {"value": None, "low": None, "high": None, "note": "p(female) hardly varies"}
        write_json(path, summary)
    text, html, _ = written(folder, tmp_path / "o")
    page = Page(html)
    for shown in (text, page.text):
        assert "rho is undefined: p(female) hardly varies" in shown
    assert numbers(page.data)[0, "winogender", "Q", "rho", "all"][0] is None
    assert re.search(r"winogender +Q +rho +undefined", text)


def test_notes_about_items_and_guessing(runs: Path, tmp_path: Path) -> None:
    text, html, told = written(runs, tmp_path)
    note = (
        "conditions were asked on different numbers of items (BBQ, ambiguous: Q: 40, Q+IF: 40, Q+IF+CoT: 4; Winogender"
    )
    assert note in text and note in Page(html).text
    near = [n for n in told["notes"] if "not clearly above the 0.33 of guessing" in n]
    assert [("expected, order-symmetrised" in n, n[n.index("Concerns") :]) for n in near] == [
        (False, "Concerns tiny-2m-seed0, RLHF step 0 (Q+IF)."),
        (True, "Concerns tiny-2m-seed0, RLHF step 100 (Q)."),
    ]


def test_cautions_stand_where_they_belong(runs: Path) -> None:
    """On bias scores and their effects, not on the accuracy that they are made from."""
    data = page_data(gather([runs])[:1], Detail())
    m, doubts = data["metrics"], {}
    for place, key, caution in zip(m["checkpoint"], m["key"], m["caution"], strict=True):
        _, condition, name, category = m["keys"][key]
        if category == "all":
            doubts[place, condition, name] = data["cautions"][caution]
    doubted = {name for (_, _, name), text in doubts.items() if text}
    assert "bias_ambig_expected_symmetrised" in doubted and not any("accuracy" in name for name in doubted)
    told = {(row[0], row[2], row[3]): [data["cautions"][place] for place in row[10:]] for row in data["effects"]}
    for (place, effect, name), texts in told.items():
        assert texts == [doubts[place, condition, name] for condition in effect.split(" -> ")]
    assert "hardly reads them" in told[1, "Q -> Q+IF", "bias_ambig_expected_symmetrised"][0]


def test_a_caution_is_of_the_number_it_stands_beside() -> None:
    """BBQ's accuracy by the same scoring, admissions' mass of the same sex; one for all where none is meant."""
    accuracies = {"": 0.21, "_expected": 0.9, "_symmetrised": 0.32, "_expected_symmetrised": 0.35}
    of = {"experiment": "bbq", "condition": "Q", "category": "all", "low": None, "note": ""}
    metrics = [{**of, "name": f"accuracy_disambig{v}", "value": a} for v, a in accuracies.items()]
    found = list(checkpoint_cautions({"step": 0, "metrics": metrics}))
    for variant, accuracy in accuracies.items():
        caution = caution_of(found, "", 0, {**of, "name": f"bias_ambig{variant}"})
        assert caution is None if accuracy == 0.9 else f"is {accuracy}, not clearly" in getattr(caution, "text", "")
    assert [c.variant for c in leading(found)] == ["_expected_symmetrised"]
    assert [c.variant for c in leading(found[:2])] == [""]
    little = {"experiment": "admissions", "condition": "Q", "name": "mass_yes_no", "category": "female", "value": 0.01}
    (caution,) = leading(checkpoint_cautions({"step": 0, "metrics": [{**little, "low": None, "note": ""}]}))
    assert caution_of([caution], "", 0, little) is None
    assert caution_of([caution], "", 0, {**little, "name": "gap"}) == caution
    assert "have 0.01 of the probability for female students:" in caution.text
    assert caution_of([caution], "", 0, {**little, "name": "gap", "category": "all"}) is None


def test_where_there_are_no_examples_the_reason_is_said(runs: Path, tmp_path: Path) -> None:
    curves = gather([changed(runs / "tiny-2m-seed0", tmp_path)])
    shown = checkpoints(curves)
    words = Words(shown[-1][1], [], None)
    why = f"records.jsonl is not beside the summary.json of {shown[-1][0].name}, RLHF step 100."
    text = html.unescape(Page(build(curves, [])[0].decode()).text)
    assert f"There are none: {why}" in text and "Left out" not in text
    records = Path(shown[-1][1]["results"]) / "records.jsonl"
    records.write_text("")
    assert "no answer under the paper's wordings" in html.unescape(examples_html(shown, [], words, 9))
    assert "Left out, to keep the page below its size" in examples_html(shown, [], words, 9, left_out=True)


def test_what_comes_from_data_is_escaped(one: Path, tmp_path: Path) -> None:
    _, html, _ = written(one, tmp_path)
    page = Page(html)
    assert "img" not in page.tags and page.tags.count("script") == 3
    assert NASTY[:200] in page.text and "cut here after 3000 characters" in page.text
    assert Page(f"<script>{embedded({'a': NASTY})}</script>").scripts == [embedded({"a": NASTY})]
    assert json.loads(embedded({"a": NASTY}))["a"] == NASTY
    assert fill("{{a}} {{b}}", {"a": "{{b}}", "b": "<"}) == "{{b}} <"


def test_examples_are_chosen_by_rule_and_worded_as_asked(one: Path, tmp_path: Path) -> None:
    (curve,) = gather([one])
    chosen = examples(checkpoints([curve]), 2)
    records = [json.loads(line) for line in (one / "eval/step-000020/records.jsonl").read_text().splitlines()]
    p = {
        (r["item"], r["condition"]): normalised(r["logprobs"])
        for r in records if r["experiment"] == "winogender"
    }  # fmt: skip
    asked = {item for item, condition in p if condition == "Q+IF+CoT"}
    moved = {i: sum(abs(a - b) for a, b in zip(p[i, "Q"], p[i, "Q+IF"], strict=True)) / 2 for i in asked}
    most = sorted(moved, key=lambda i: -moved[i])[:2]
    found = [e for e in chosen if e.experiment == "winogender"]
    assert [e.unit for e in found[:2]] == most and f"{moved[most[0]]:.3f}" in found[0].why
    assert {e.why for e in found[2:]} == {"drawn at random, seed 0"} and len({e.unit for e in found}) == 4
    assert [e.unit for e in chosen] == [e.unit for e in examples(checkpoints([curve]), 2)]
    page = Page(written(one, tmp_path)[1]).text
    sentence = f"{p[most[0], 'Q'][0]:.3f}"
    assert "Please fill in the missing blank in this sentence with a pronoun:" in page and sentence in page
    assert "[the sampled text below]" in page and "(Black " in page and "(white " in page


def test_words_that_are_not_those_asked_are_not_shown(one: Path, tmp_path: Path) -> None:
    target = changed(one, tmp_path / "r") / "eval/step-000020"
    source = one / "eval/step-000020"
    lines = (source / "records.jsonl").read_text()
    (target / "records.jsonl").write_text(re.sub(r'"prompt_sha256": ?"\w{8}', '"prompt_sha256": "00000000', lines))
    page = Page(written(tmp_path / "r", tmp_path / "o")[1]).text
    assert "words it otherwise than it was asked" in page and "Please fill in the missing blank" not in page
    changed(one, tmp_path / "r", data="BBQ of the lab")
    page = Page(written(tmp_path / "r", tmp_path / "o")[1]).text
    assert "the data folder 'BBQ of the lab' is not at hand: give it by --data-dir" in page


def test_cells_of_profiles_hold_all_students(one: Path) -> None:
    results = one / "eval/step-000020"
    summary = json.loads((results / "summary.json").read_text())
    found = breakdown(results)
    for condition, cells in found["profiles"].items():
        students = sum(c[2] for c in cells)
        for name, k in (("gap", 3), ("p_admit", 4)):
            m = next(
                m for m in summary["metrics"]
                if (m["name"], m["condition"], m["category"]) == (name, condition, "all")
            )  # fmt: skip
            assert sum(c[2] * c[k] for c in cells) / students / 10_000 == pytest.approx(m["value"], abs=1e-4)
    (occupations,) = found["occupations"].values()
    assert len(occupations["Q"]) == 60 and all(sum(row[2:]) == pytest.approx(10_000, abs=2) for row in occupations["Q"])


def many(curves: list[Curve], sizes: int, steps: int) -> list[Curve]:
    """As many curves as a large sweep has."""
    (curve, summary) = curves[0], curves[0].summaries[0]
    return [
        replace(
            curve,
            name=f"sweep-{size}",
            described={**curve.described, "model_params": 10**6 * 2**size},
            summaries=tuple({**summary, "step": 100 * k} for k in range(steps)),
        )
        for size in range(sizes)
    ]


def test_many_curves_stay_below_two_megabytes(one: Path) -> None:
    curves = many(gather([one]), 8, 11)
    page, left_out = build(curves, page_text.notes(curves))
    assert len(page) <= MOST_BYTES < 2_000_000 and left_out
    html = Page(page.decode())
    assert all(f"Left out, to keep this page below 2 MB: {what}" in html.text for what in left_out)
    shown = {k[1:4] for k in numbers(html.data)}
    assert {("bbq", "Q+IF", f"bias_ambig{v}") for v in html.data["variants"]} <= shown
    assert {name for _, _, name in shown} <= set(CHARTED) and len(html.data["checkpoints"]) == 88
    with pytest.raises(InputError, match=r"a page of these 1 checkpoints has .* give fewer RUNS"):
        build(gather([one]), [], most_bytes=900_000)


def test_emergence_is_told_with_its_assumptions(runs: Path, tmp_path: Path) -> None:
    told = [{"experiment": "bbq", "condition": "Q+IF", "axis": "size", "text": "From 8M < 9M on.", "estimate": 8e6,
             "low": 2e6, "high": 5e7, "assumptions": ["One change.", "Nothing else."]}]  # fmt: skip
    config = ReportConfig(runs=[str(runs)], output=str(tmp_path))
    _, answer = report(config, emergence=lambda curves: told if len(curves) == 3 else [])
    page = Page(Path(answer["files"][0]).read_text()).text
    assert "From 8M < 9M on." in page and "One change.Nothing else." in page


def test_where_it_is_written_and_what_is_missing(one: Path, tmp_path: Path) -> None:
    assert ReportConfig(runs=[str(one)]).folder("report") == one / "report"
    for folder, said in ((tmp_path / "no", "is not there"), (tmp_path, "no finished evaluation")):
        with pytest.raises(InputError, match=said):
            report(ReportConfig(runs=[str(folder)]))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        report(ReportConfig(runs=[str(one)], output=str(tmp_path / "file")))
