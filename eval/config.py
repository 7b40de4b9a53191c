"""Strict configuration: YAML and command line over dataclasses, and the one-line errors of bad input.

Order of precedence: command line > YAML file (--config FILE) > default. An unknown key, wherever it stands, is an
error that names the nearest known one (TRL's and transformers' own parsers let some of them pass, and do not check
the types of lists that come from YAML: here the YAML goes through the same parser as the command line).
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eval.secrets import hide_arguments, masked_text


class InputError(Exception):
    """Something the user gave is wrong. The text is one line: the value, the constraint, the remedy; secrets masked."""

    def __init__(self, text: str) -> None:
        super().__init__(masked_text(text))


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point; bad input ends with its one line on stderr and exit status 2, Ctrl-C with 130."""
    try:
        main()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for the known name closest to `name`, else the list of known names if it is short."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""


def parse(types: Sequence[type], argv: Sequence[str], prog: str) -> tuple[Any, ...]:
    """Parses `argv` (with an optional --config FILE of YAML, and --size NAME where that has sizes) into one instance
    of each dataclass in `types`.

    Afterwards this process's own command line has no secrets any more, since trackers record it. Raises InputError for
    an unknown key, a value of the wrong type, a missing required one, or a value that the dataclass itself refuses
    (ValueError in its __post_init__).
    """
    from transformers import HfArgumentParser

    from eval.yaml_config import yaml_arguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{prog}: {message}")

    parser: Any = Parser(
        list(types),  # pyright: ignore[reportArgumentType]
        prog=prog,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with values for the options below; the command line wins")
    parser.add_argument("--size", help="which size, where the YAML file holds several (configs/ladders/)")
    known = [f.name for t in types for f in fields(t) if f.init]
    hide_arguments()
    argv, config = _take(list(argv), "--config", "the path of a YAML file", prog)
    argv, size = _take(argv, "--size", "the name of a size in the YAML file", prog)
    if size is not None and config is None:
        raise InputError(f"{prog}: --size {size} chooses among the sizes of a YAML file; add --config FILE")
    _check_flags(argv, known, prog)
    given = {_option(argument) for argument in argv if argument.startswith("--")}
    argv = (yaml_arguments(Path(config), size, known, given) if config else []) + argv
    try:
        # a key of TRL's that its __post_init__ refuses raises ValueError there with a text of its own
        *values, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:  # ImportError: for a package that an option needs
        raise InputError(f"{prog}: {error}") from error
    if rest:
        raise InputError(f"{prog}: cannot read '{rest[0]}' on the command line; options are written --name value")
    return tuple(values[: len(types)])


def _take(argv: list[str], option: str, what: str, prog: str) -> tuple[list[str], str | None]:
    """Takes `option VALUE` or `option=VALUE` out of argv; the value is None where the option is not there."""
    found, rest, i = None, [], 0
    while i < len(argv):
        name, _, value = argv[i].partition("=")
        if name != option:
            rest.append(argv[i])
        elif found is not None:
            raise InputError(f"{prog}: {option} is given twice; give one")
        else:
            if not value:
                i += 1
                if i == len(argv):
                    raise InputError(f"{prog}: {option} needs {what}")
                value = argv[i]
            found = value
        i += 1
    return rest, found


def _check_flags(argv: list[str], known: list[str], prog: str) -> None:
    for argument in argv:
        if argument.startswith("--"):
            name = _option(argument)
            if name not in known and name.removeprefix("no_") not in known and name != "help":
                raise InputError(f"{prog}: unknown option --{argument[2:].partition('=')[0]}{nearest(name, known)}")


def _option(argument: str) -> str:
    """The key that an argument gives: '--batch-tokens=64' -> 'batch_tokens'."""
    return argument[2:].partition("=")[0].replace("-", "_")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping; InputError where the file is missing, not YAML, or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config file {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config file {path} is not valid YAML: {error}") from error
    except yaml.YAMLError as error:  # whose text quotes a part of the line, which may be a part of a secret
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"config file {path} is not valid YAML{where}: {problem or 'it cannot be read'}") from error
    if not isinstance(values, dict):
        raise InputError(f"config file {path} must hold a mapping of keys to values")
    return values


def prepare_output(folder: Path, needed_mib: int = 16) -> None:
    """Makes the output folder and proves, before any work, that it can be written and has room.

    Raises InputError where it cannot be made or written, or where fewer than `needed_mib` MiB are free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    free_mib = shutil.disk_usage(folder).free // 2**20
    if free_mib < needed_mib:
        raise InputError(
            f"output folder {folder} has {free_mib} MiB free and the run needs about {needed_mib}; "
            "free some space or choose another folder"
        )


@dataclass
class QuestionsConfig:
    """Which questions are asked."""

    experiments: list[str] = field(
        default_factory=lambda: ["bbq", "winogender", "admissions"],
        metadata={"help": "bbq, winogender, admissions; winogenerated where the data folder has it"},
    )
    conditions: list[str] = field(
        default_factory=lambda: ["Q", "Q+IF", "Q+IF+CoT", "Q+Match-Stats"],
        metadata={"help": "Q, Q+IF, Q+IF+CoT, Q+Match-Stats (Winogender only)"},
    )
    inverse: bool = field(
        default=False, metadata={"help": "also ask Q+Inverse, the instruction to rely on stereotypes: a misuse probe"}
    )
    categories: list[str] = field(default_factory=list, metadata={"help": "BBQ categories; empty = all that are there"})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with bbq/, winogender/, admissions/; default $SELFCORRECT_DATA or the small set"},
    )
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
    precision: float | None = field(
        default=None,
        metadata={"help": "ask in random order, and stop when all headline metrics are known to +-W (else: ask all)"},
    )
    seed: int = field(default=0, metadata={"help": "seed of everything that is drawn, the bootstrap included"})

    def __post_init__(self) -> None:
        from eval.conditions import CONDITIONS, INVERSE, condition_named
        from eval.experiments.registry import EXPERIMENTS

        self.experiments = split_commas(self.experiments)
        self.categories = split_commas(self.categories)
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise InputError(f"experiments: unknown '{name}'{nearest(name, list(EXPERIMENTS))}")
        self.conditions = list(dict.fromkeys(condition_named(c).name for c in split_commas(self.conditions)))
        if not self.experiments or not self.conditions:
            raise InputError(f"experiments and conditions must not be empty; conditions: {', '.join(CONDITIONS)}")
        if self.inverse:
            self.conditions += [INVERSE] if INVERSE not in self.conditions else []
        elif INVERSE in self.conditions:
            raise InputError(f"conditions: {INVERSE} instructs the model to rely on stereotypes; say so with --inverse")
        self.admissions_races = split_commas(self.admissions_races)
        if self.admissions_vary not in ("race", "sex"):
            raise InputError(f"admissions_vary must be race or sex, not '{self.admissions_vary}'")
        if len(self.admissions_races) < (2 if self.admissions_vary == "race" else 1):
            raise InputError("admissions_races needs at least two races, the last being the one to compare with")
        if self.orders not in (1, 3):
            raise InputError(f"orders must be 1 (as given) or 3 (all rotations), not {self.orders}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1, not {self.limit}")
        if self.precision is not None and not 0 < self.precision < float("inf"):
            raise InputError(
                f"precision must be a number above 0, not {self.precision}; it is half the width of an interval, "
                "0.02 for example; leave it out to ask everything"
            )
        check_seed(self.seed)


@dataclass
class EvaluationConfig(QuestionsConfig):
    """What is asked of a checkpoint, and how; what `eval run` and the evaluation during training share."""

    cot_limit: int | None = field(
        default=None,
        metadata={"help": "chain of thought on about N items of each experiment, spread evenly over the set"},
    )
    paraphrases: bool = field(
        default=False, metadata={"help": "ask each instruction also in five wordings of ours; reports mean and spread"}
    )
    format: str = field(default="auto", metadata={"help": "dialogue format: auto, chat or paper"})
    system_turn: str = field(
        default="keep", metadata={"help": "the chat template's own default system turn, where it has one: keep or drop"}
    )
    cot_max_new_tokens: int = field(
        default=256, metadata={"help": "length of the sampled reasoning (paper: up to 256)"}
    )
    batch_tokens: str = field(
        default="auto",
        metadata={"help": "most tokens in a forward pass: auto, or a number; halved when memory runs out"},
    )
    sample_batch: int = field(default=64, metadata={"help": "dialogues whose reasoning is sampled together"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("auto", "chat", "paper"):
            raise InputError(f"format must be auto, chat or paper, not '{self.format}'")
        if self.system_turn not in ("keep", "drop"):
            raise InputError(f"system_turn must be keep or drop, not '{self.system_turn}'")
        for name in ("cot_limit", "cot_max_new_tokens", "sample_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.batch_tokens != "auto" and not (self.batch_tokens.isdecimal() and int(self.batch_tokens) >= 1):
            raise InputError(f"batch_tokens must be auto or a number of at least 1, not '{self.batch_tokens}'")

    @property
    def most_batch_tokens(self) -> int | None:
        """batch_tokens as the scorer takes it; None = found by it."""
        return None if self.batch_tokens == "auto" else int(self.batch_tokens)


def check_seed(seed: int) -> None:
    """InputError for a seed that no generator takes."""
    if seed < 0:
        raise InputError(f"seed must be at least 0, not {seed}")


def split_commas(values: list[str]) -> list[str]:
    """The parts of all values, each once: ['a,b', 'a'] -> ['a', 'b']."""
    return list(dict.fromkeys(part.strip() for v in values for part in v.split(",") if part.strip()))
