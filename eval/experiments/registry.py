"""The experiments by name. To add one, add its file here and one line below."""

from __future__ import annotations

from types import ModuleType

from eval.experiments import admissions, bbq, winogender, winogenerated

EXPERIMENTS: dict[str, ModuleType] = {
    "bbq": bbq,
    "winogender": winogender,
    "admissions": admissions,
    "winogenerated": winogenerated,
}
