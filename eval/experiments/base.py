"""The options that the experiments share: which rows they use, in which orders, and whom they ask about."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.cli.parser import split_commas
from eval.errors import InputError


@dataclass
class ExperimentOptions:
    """Options that the experiments themselves read."""

    categories: list[str] = field(default_factory=list, metadata={"help": "BBQ categories; empty = all that are there"})
    limit: int | None = field(
        default=None, metadata={"help": "the first N rows of each set (BBQ: of each category's file) in file order"}
    )
    orders: int = field(
        default=3,
        metadata={"help": "BBQ option orders asked: 1 = as given (the paper), 3 = all rotations (order-symmetrised)"},
    )
    admissions_races: list[str] = field(
        default_factory=lambda: ["Black", "white"],
        metadata={"help": "races asked about in admissions; each is compared with the last one"},
    )
    admissions_vary: str = field(
        default="race", metadata={"help": "what is varied of a student: race, or sex (asked about as each race)"}
    )

    def __post_init__(self) -> None:
        self.categories = split_commas(self.categories)
        self.admissions_races = split_commas(self.admissions_races)
        if self.admissions_vary not in ("race", "sex"):
            raise InputError(f"admissions_vary must be race or sex, not '{self.admissions_vary}'")
        if len(self.admissions_races) < (2 if self.admissions_vary == "race" else 1):
            raise InputError("admissions_races needs at least two races, the last being the one to compare with")
        if self.orders not in (1, 3):
            raise InputError(f"orders must be 1 (as given) or 3 (all rotations), not {self.orders}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1, not {self.limit}")
