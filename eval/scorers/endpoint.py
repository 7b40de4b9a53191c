"""--scorer endpoint: a model behind any server of the OpenAI routes (vLLM, SGLang, llama.cpp, hosted ones).

What the server can do is found out at the start (eval.scorers.abilities), the best of it is used and recorded as
`method`: exact log-probabilities of whole candidates by echo, or of their tokens by the most probable next ones
(eval.scorers.exact), else probabilities counted in sampled answers (eval.scorers.sampled). Records of two methods are
never mixed in a folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eval.config import InputError

if TYPE_CHECKING:
    from eval.plan import Plan
    from eval.run_config import RunConfig
    from eval.scorers.opening import Opened
    from eval.targets import Target

log = logging.getLogger(__name__)

METHODS = ("echo", "top", "sampling")


@dataclass
class EndpointOptions:
    """The options of --scorer endpoint."""

    base_url: str | None = field(
        default=None, metadata={"help": "endpoint: address of the server's API, such as http://host:8000/v1"}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "endpoint: environment variable that holds the key, if one is set"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "endpoint: folder or hub id of the model's tokenizer; prompts then go as its token ids"},
    )
    answer_method: str = field(
        default="auto",
        metadata={"help": f"endpoint: auto (the first that the server can do), or {', '.join(METHODS)}"},
    )
    answer_samples: int = field(
        default=100, metadata={"help": "endpoint: answers sampled for each question, where that is the method"}
    )
    concurrency: int = field(default=8, metadata={"help": "endpoint: requests at a time"})
    timeout: float = field(default=300.0, metadata={"help": "endpoint: seconds that a request may take"})
    retries: int = field(default=6, metadata={"help": "endpoint: how often a request is tried again"})


def check(config: RunConfig) -> None:
    """InputError for options that do not go with the scorer, or with each other."""
    defaults = EndpointOptions()
    given = [name for name in vars(defaults) if getattr(config, name) != getattr(defaults, name)]
    if config.scorer != "endpoint":
        if given:
            raise InputError(f"--{given[0]} belongs to --scorer endpoint, and the scorer is {config.scorer}")
        return
    if config.base_url is None:
        raise InputError("scorer endpoint needs --base-url, the address of the server's API: http://host:8000/v1")
    check_url(config.base_url)
    meaningless = {
        "adapter": (None, "an adapter that the server has loaded is a --model of its own there"),
        "revision": ([], "which weights are served is the server's to say"),
        "dtype": ("auto", "the server has the weights in a dtype of its own"),
        "device": ("auto", "the model is on the server"),
        "batch_tokens": ("auto", "the server makes its batches; --concurrency bounds the requests at a time"),
    }
    for name, (default, why) in meaningless.items():
        if getattr(config, name) != default:
            raise InputError(f"--{name} does not go with --scorer endpoint: {why}; leave it out")
    if config.system_turn != "keep" and not config.tokenizer:
        raise InputError("--system_turn does not go with --scorer endpoint without --tokenizer: the server's template")
    if config.answer_method not in ("auto", *METHODS):
        raise InputError(f"answer_method must be auto or one of {', '.join(METHODS)}, not '{config.answer_method}'")
    for name in ("answer_samples", "concurrency"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.retries < 0 or not 0 < config.timeout < math.inf:
        raise InputError(f"retries must be at least 0 and timeout above 0, not {config.retries} and {config.timeout}")
    if config.precision is not None and config.answer_method == "sampling":
        raise InputError(NO_PRECISION)


NO_PRECISION = (
    "--precision does not go with sampled answers: its rule takes probabilities as known; leave it out, or serve the "
    "model where log-probabilities can be had"
)


def check_url(url: str) -> None:
    """InputError, which does not repeat it, for an address that is none or has credentials in it."""
    import httpx

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url).host.encode("idna")
    except (ValueError, httpx.InvalidURL):
        raise InputError("--base-url is no address; it is written http://host:8000/v1") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InputError(
            "--base-url must not hold user:password@; put the key into the variable that --api_key_env names"
        )
    if parts.query or parts.fragment:
        raise InputError(
            "--base-url must not have a ?query or #fragment; a key goes into the variable of --api_key_env"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("--base-url must begin with http:// or https:// and a host, such as http://host:8000/v1")


def key_of(config: RunConfig) -> str | None:
    """The key in the environment. InputError, which shows no key, where the variable is asked for and not there."""
    name = config.api_key_env
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or (name not in os.environ and name != "OPENAI_API_KEY"):
        raise InputError(
            "--api_key_env must name an environment variable that is set; the key itself never stands in a command"
        )
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {name} has characters that no header takes; put the key alone into it")
    if key and urlsplit(config.base_url or "").scheme == "http" and not _local(config.base_url or ""):
        log.warning("the key in %s goes over http unencrypted", name)
    return key or None


def _local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def open_target(target: Target, config: RunConfig, planned: Plan) -> Opened:
    """eval.scorers.opening.open_target; the server is reached when the scorer is loaded."""
    from eval.dialogue import Format
    from eval.results import read_json
    from eval.scorers.abilities import Wanted, find_out
    from eval.scorers.opening import Opened
    from eval.scorers.served import Served, load_tokenizer

    if target.adapter or target.revision:
        raise InputError(
            f"{target}: an endpoint's model has no --adapter and no --revision here; give the name it is served under"
        )
    tokenizer = load_tokenizer(config) if config.tokenizer else None
    found = read_json(Path(target.folder) / "provenance.json") or {}
    held = found.get("method") if found.get("scorer") == "endpoint" else None
    wanted = Wanted.of(config, tokenizer, held)
    known: dict[str, Any] = {
        "model": target.model,
        "revision": None,
        "commit": None,
        "weights": f"endpoint:{target.model}",
        "adapter": None,
        "adapter_weights": None,
        "model_params": None,
        "dtype_asked": None,
        "trust_remote_code": config.trust_remote_code,
        "scorer": config.scorer,
        **wanted.known(found),
    }

    def load_scorer() -> tuple[Any, dict[str, Any]]:
        from eval.scorers.asking import EndpointScorer

        served = Served.reach(config, target.model, key_of(config), tokenizer, wanted.style or Format("paper"))
        ability = find_out(served, wanted, planned)
        if ability.method == "sampling" and config.precision is not None:
            raise InputError(NO_PRECISION)
        scorer = EndpointScorer(served, ability, config.answer_samples, config.seed)
        return scorer, known | scorer.describe()

    return Opened(known, load_scorer)
