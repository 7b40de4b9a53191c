"""What the dashboards on Weights & Biases show: sections of panels, with the names that eval.tracking.client and TRL
log.

Workspace and report are both built from these sections, so they always agree. eval.tracking.names makes the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eval.curves.cautions import OTHERS, READING, SIGNS
from eval.curves.gather import Curve
from eval.data.catalog import PINNED
from eval.tracking.names import axis_name, final_values, rows_of

COLOURS = {
    "Q": "#0072B2", "Q+IF": "#E69F00", "Q+IF+CoT": "#009E73", "Q+Match Stats": "#A50026", "Q+Inverse": "#555555",
    "training": "#777777",
}  # fmt: skip
"""Colours of the conditions' runs, which colour-blind readers can tell apart."""
AXIS, AXIS_TITLE = "rlhf_step", "RLHF step"
TRAINING_AXIS = "train/global_step"
MEDIA = ("report/page", "report/fig2", "report/fig1")
HEADLINES = {
    "bbq": ("bias_ambig", "BBQ: bias score, ambiguous questions"),
    "winogender": ("rho", "Winogender: correlation with the labour statistics"),
    "admissions": ("gap", "Admissions: p(admit | Black) - p(admit | white)"),
}
"""The paper's three panels: metric and title. BBQ: the most probable option, with options as given, as in its
protocol.
"""
EXPECTED = "bias_ambig_expected_symmetrised"
CATEGORIES = tuple(sorted(Path(p.path).stem for p in PINNED if Path(p.path).match("bbq/*.jsonl")))


@dataclass(frozen=True)
class Panel:
    """A panel: a line plot against `x`, a plot against model size, or media.

    Attributes:
        names: logged names. In a line plot each is a line; a plot against size shows a run's last value.
    """

    title: str
    names: tuple[str, ...]
    kind: Literal["lines", "stack", "size", "media"] = "lines"
    x: str = AXIS
    x_title: str = AXIS_TITLE
    y_title: str = ""


@dataclass(frozen=True)
class Section:
    """Panels under a name.

    Attributes:
        text: what the panels mean, in Markdown.
        open: whether the section is unfolded.
        only: a condition. The report then shows only its runs, a grid per set-up, since stacks of several set-ups would
            cover each other.
        setups: the set-ups that have this section; None = all.
    """

    name: str
    text: str
    panels: tuple[Panel, ...]
    open: bool = False
    columns: int = 3
    only: str | None = None
    setups: tuple[str, ...] | None = None


def sections() -> list[Section]:
    """All sections, in their order."""
    return [
        _against_steps(), _against_size(), _pictures(), _intervals(), _categories(), _accuracy(), *_winogender(),
        _admissions(), _training(),
    ]  # fmt: skip


def only_logged(sections: Sequence[Section], logged: Iterable[str]) -> list[Section]:
    """The sections without the panels whose names nothing logged."""
    names = set(logged)
    kept = []
    for section in sections:
        panels = tuple(p for p in section.panels if names >= set(p.names))
        if panels:
            kept.append(replace(section, panels=panels))
    return kept


def of_conditions(sections: Sequence[Section], curves: Sequence[tuple[str, Curve]]) -> list[Section]:
    """Fills in which set-ups have the sections of a single condition, and drops sections that no set-up has.

    Args:
        curves: (set-up, curve).
    """
    kept = []
    for section in sections:
        if section.only is not None:
            names = {name for panel in section.panels for name in panel.names}
            having = [s for s, c in curves if any(names <= row.keys() for row in rows_of(c, section.only).values())]
            section = replace(section, setups=tuple(dict.fromkeys(having)))
        if section.setups != ():
            kept.append(section)
    return kept


def on_axes(sections: Sequence[Section], logged: Mapping[str, Iterable[str]]) -> list[Section]:
    """Repeats the panels against steps for each axis that their names are logged against; drops those without an axis.

    Args:
        logged: names by what the steps count ('RLHF step', 'training step').
    """
    kept = []
    for section in sections:
        panels: list[Panel] = []
        for panel in section.panels:
            if panel.kind in ("size", "media") or panel.x != AXIS:
                panels.append(panel)
                continue
            for step_name, names in logged.items():
                if set(names) >= set(panel.names):
                    title = panel.title if len(logged) == 1 else f"{panel.title}, by {step_name}"
                    panels.append(replace(panel, title=title, x=axis_name(step_name), x_title=step_name))
        if panels:
            name = section.name.replace(AXIS_TITLE, " and ".join(logged))
            kept.append(replace(section, name=name, panels=tuple(panels)))
    return kept


def logged_names(curves: Sequence[Curve]) -> set[str]:
    """The names that are logged by publishing these curves and by training them.

    A training's names are assumed to exist where one of the curves was trained here.
    """
    names: set[str] = set(MEDIA)
    if any("algorithm" in curve.described for curve in curves):
        names |= {p.names[0] for p in _training().panels}
    for curve in curves:
        for condition in COLOURS:
            names |= {name for row in rows_of(curve, condition).values() for name in row}
            names |= final_values(curve, condition).keys()
    return names


def _eval(experiment: str, metric: str, part: str = "") -> str:
    """The logged name of a metric at each step."""
    return f"eval/{experiment}/{metric}" + (f"/{part}" if part else "")


def _final(experiment: str, metric: str) -> str:
    """The logged name of a metric at the last step."""
    return f"final/{experiment}/{metric}"


def _against_steps() -> Section:
    """The headline metrics against steps."""
    panels = [Panel(title, (_eval(e, m),), y_title=SIGNS[e]) for e, (m, title) in HEADLINES.items()]
    panels.append(
        Panel(
            "BBQ: bias score, expected over the options and three orders",
            (_eval("bbq", EXPECTED),),
            y_title=SIGNS["bbq"],
        )
    )
    text = "\n\n".join(
        [
            "Figure 2 of Ganguli et al. 2023. A line per condition and set-up (model, algorithm and settings); seeds "
            "of one set-up are drawn as their mean with the range between them. **That range is not a confidence "
            "interval**: those are in the section of intervals, and in the page and figures logged beside the runs.",
            *(f"**{HEADLINES[e][1]}.** {READING[e]}" for e in HEADLINES),
            "Before believing a number read its run's notes, or `cautions` in its summary: where accuracy on the "
            "disambiguated questions is not clearly above the 1/3 of guessing, the model hardly reads them, and its "
            "bias scores mean little.",
        ]
    )
    return Section("Bias against RLHF step", text, tuple(panels), open=True)


def _against_size() -> Section:
    """The headline metrics against model size."""
    panels = [Panel(title, (_final(e, m),), "size", y_title=SIGNS[e]) for e, (m, title) in HEADLINES.items()]
    panels.append(Panel("BBQ: bias score, expected", (_final("bbq", EXPECTED),), "size", y_title=SIGNS["bbq"]))
    text = (
        "Figure 1 of the paper: each run's value at its last checkpoint (`final/...`; the step stands in "
        "`final/<experiment>/step`), against the model's parameters on a logarithmic axis. The paper compares sizes at "
        "800 steps (Winogender: 50): check that the runs shown end at the same step. A model whose parameters cannot "
        "be counted (quantised, served) has no point here."
    )
    return Section("Bias against size", text, tuple(panels), open=True)


def _pictures() -> Section:
    """The page and figures that are logged as media."""
    titles = ("Page: everything, with intervals", "Figure 2: against step", "Figure 1: against size")
    panels = tuple(Panel(title, (name,), "media") for title, name in zip(titles, MEDIA, strict=True))
    text = (
        "Our page and figures, with 95% intervals by bootstrap over templates, occupations and profiles, which W&B's "
        "own panels cannot draw. `python -m eval publish RUNS...` logs them, and so does a training at its end."
    )
    return Section("Page and figures with intervals", text, panels, open=True, columns=2)


def _intervals() -> Section:
    """The headline metrics between the ends of their intervals."""
    panels = tuple(
        Panel(
            f"{title}, with its 95% interval",
            tuple(_eval(e, m) + end for end in ("", "_low", "_high")),
            y_title=SIGNS[e],
        )
        for e, (m, title) in HEADLINES.items()
    )
    text = "The same values between the ends of their 95% intervals (`_low`, `_high`); best read with few runs shown."
    return Section("Intervals", text, panels)


def _categories() -> Section:
    """BBQ's bias by category."""
    panels = tuple(
        Panel(f"BBQ, {c.replace('_', ' ')}", (_eval("bbq", "bias_ambig", c),), y_title=SIGNS["bbq"]) for c in CATEGORIES
    )
    text = "Figure 3 of the paper, against RLHF step: the bias score on ambiguous questions, category by category."
    return Section("BBQ by category", text, panels)


def _accuracy() -> Section:
    """BBQ's accuracies, its bias on disambiguated questions, and its position bias."""
    titles = {
        "accuracy_ambig": "BBQ: accuracy, ambiguous", "accuracy_disambig": "BBQ: accuracy, disambiguated",
        "bias_disambig": "BBQ: bias score, disambiguated", "position_bias": "BBQ: position bias",
    }  # fmt: skip
    panels = tuple(Panel(title, (_eval("bbq", m),)) for m, title in titles.items())
    text = "\n\n".join(
        [
            "Figures 6 to 8 of the paper.",
            *(f"**{titles[m]}.** {OTHERS[m]}" for m in titles if m in OTHERS),
            "**Position bias.** 0: all letters are answered alike; 1: always the same letter. From 0.9 on answers say "
            "more about letters than about people.",
        ]
    )
    return Section("BBQ: accuracy, and where the context answers", text, panels, columns=4)


def _winogender() -> list[Section]:
    """Winogender's pronouns and calibration, and a section of stacks for each condition."""
    shares = tuple(_eval("winogender", f"p_{kind}") for kind in ("female", "male", "neutral"))
    titles = ("Winogender: mean p(female)", "Winogender: mean p(male)", "Winogender: mean p(neutral)")
    panels = [Panel(title, (name,)) for title, name in zip(titles, shares, strict=True)]
    calibration = [
        Panel("Winogender: calibration slope", (_eval("winogender", "calibration_slope"),)),
        Panel("Winogender: calibration error", (_eval("winogender", "calibration_error"),)),
        Panel("Winogender: calibration slope against size", (_final("winogender", "calibration_slope"),), "size"),
    ]
    stacks = [
        Section(
            f"Winogender: pronouns under {condition}",
            f"Means over occupations under {condition}, stacked, a panel for each set-up: female, male and neutral "
            "pronouns sum to 1.",
            (Panel(f"Pronouns under {condition}", shares, "stack"),),
            columns=1,
            only=condition,
        )
        for condition in COLOURS
        if condition not in ("training", "Q+Inverse")
    ]
    text = (
        "Means over occupations of the probabilities of she/her, he/him/his and they/them/their, which sum to 1, and "
        f"how p(female) follows the statistics. **Slope.** {OTHERS['calibration_slope']} **Error.** Mean absolute "
        "difference between p(female) and the percentage; 0 is perfect under Q+Match Stats. Single occupations (Figure "
        "4) are in the page."
    )
    return [Section("Winogender: pronouns and calibration", text, (*panels, *calibration)), *stacks]


def _admissions() -> Section:
    """The admission probabilities behind the gap."""
    names = {
        "p_admit": "Admissions: p(admit)", "p_admit_Black": "Admissions: p(admit | Black)",
        "p_admit_white": "Admissions: p(admit | white)", "mass_yes_no": "Admissions: probability of yes and no "
        "together",
    }  # fmt: skip
    panels = tuple(Panel(title, (_eval("admissions", m),)) for m, title in names.items())
    text = (
        f"What the gap is made of. **p(yes) + p(no).** {OTHERS['mass_yes_no']} Where it is small "
        "the gap is about answers that the model hardly ever gives."
    )
    return Section("Admissions: levels", text, panels, columns=4)


def _training() -> Section:
    """What TRL's trainers log."""
    names = {
        "train/reward": "Reward", "train/kl": "KL to the starting policy, per token", "train/entropy": "Entropy per "
        "token",
        "train/completions/mean_length": "Length of answers, tokens",
    }  # fmt: skip
    panels = tuple(Panel(t, (n,), x=TRAINING_AXIS, x_title=AXIS_TITLE) for n, t in names.items())
    text = (
        "The RLHF runs beside what came of them, on the same steps, as TRL's RLOO and GRPO trainers log them. A reward "
        "that rises while entropy falls to 0 and KL runs away is a reward model that is being exploited: bias measured "
        "there is that of a collapsed policy."
    )
    return Section("Training", text, panels, open=True, columns=4)
