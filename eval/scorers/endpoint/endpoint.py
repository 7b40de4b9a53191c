"""--scorer endpoint: a model behind any server that speaks OpenAI's API (vLLM, SGLang, llama.cpp, hosted ones).

The start of a run detects what the server can do (eval.scorers.endpoint.capabilities). The best method is used and
recorded as `method`:
- exact log-probabilities of whole candidates by echo, or of their tokens from the lists of the most probable next
  tokens (eval.scorers.endpoint.exact);
- else probabilities counted in sampled answers (eval.scorers.endpoint.sampled).
One results folder never mixes records of two methods.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eval.errors import InputError
from eval.scorers.options import NO_PRECISION

if TYPE_CHECKING:
    from eval.models.target import Target
    from eval.runner.plan import Plan
    from eval.scorers.options import ScorerConfig
    from eval.scorers.registry import OpenedTarget

log = logging.getLogger(__name__)


def read_api_key(config: ScorerConfig) -> str | None:
    """Reads the API key from the environment variable that --api_key_env names.

    Returns:
        The key, or None if OPENAI_API_KEY, the default, is not set or the variable is empty.

    Raises:
        InputError: The variable's name is malformed, another variable than OPENAI_API_KEY is not set, or the key has
            characters that an HTTP header cannot carry. The message never shows the key.
    """
    name = config.api_key_env
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or (name not in os.environ and name != "OPENAI_API_KEY"):
        raise InputError(
            "--api_key_env must name an environment variable that is set; the key itself never stands in a command"
        )
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {name} has characters that no header takes; put the key alone into it")
    if key and urlsplit(config.base_url or "").scheme == "http" and not _is_local(config.base_url or ""):
        log.warning("the key in %s goes over http unencrypted", name)
    return key or None


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def open_target(target: Target, config: ScorerConfig, plan: Plan) -> OpenedTarget:
    """Implements eval.scorers.registry.open_target. The server is contacted only when the scorer is loaded."""
    from eval.files import read_json
    from eval.models.prompt_format import Format
    from eval.scorers.endpoint.capabilities import AllowedMethods, detect_capability
    from eval.scorers.endpoint.routes import ServedModel, load_tokenizer
    from eval.scorers.registry import OpenedTarget

    if target.adapter or target.revision:
        raise InputError(
            f"{target}: an endpoint's model has no --adapter and no --revision here; give the name it is served under"
        )
    tokenizer = load_tokenizer(config) if config.tokenizer else None
    recorded = read_json(Path(target.folder) / "provenance.json") or {}
    recorded_method = recorded.get("method") if recorded.get("scorer") == "endpoint" else None
    allowed = AllowedMethods.from_options(config, tokenizer, recorded_method)
    provenance: dict[str, Any] = {
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
        **allowed.known_provenance(recorded),
    }

    def load_scorer() -> tuple[Any, dict[str, Any]]:
        from eval.scorers.endpoint.scorer import EndpointScorer

        served = ServedModel.connect(
            config, target.model, read_api_key(config), tokenizer, allowed.style or Format("paper")
        )
        capability = detect_capability(served, allowed, plan)
        if capability.method == "sampling" and config.precision is not None:
            raise InputError(NO_PRECISION)
        scorer = EndpointScorer(served, capability, config.answer_samples, config.seed)
        return scorer, provenance | scorer.describe()

    return OpenedTarget(provenance, load_scorer)
