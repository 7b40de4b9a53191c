"""Masks secrets in options and texts: whatever is recorded, printed or pickled holds MASK in their place.

An option or key is secret by its name (hub_token, api_key, password ...). In a URL, what stands before the host is
secret too.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

MASK = "***"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SECRET = {
    "password", "passwd", "passphrase", "pwd", "secret", "credential", "authorization", "auth", "cookie", "signature",
    "sig", "bearer", "apikey", "authtoken", "accesstoken", "accesskey", "secretkey",
}  # fmt: skip
"""A name is secret if its last word is one of these, or the plural of one."""
OWNERS = {"access", "account", "api", "auth", "hf", "hub", "private", "secret", "subscription"}
"""A name is secret if it ends with one of these words followed by `key`, `keys` or `tokens`."""
VOCABULARY = {
    "audio", "begin", "boi", "bos", "cls", "end", "eoi", "eos", "eot", "image", "mask", "new", "pad", "sep", "start",
    "stop", "think", "unk", "video",
}  # fmt: skip
"""A name that ends in `token` is secret, unless one of these words precedes: then it is a tokenizer's token."""
CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")
NAME = re.compile(r"""(?<![\w.-])(?P<name>(?P<option>--)?-?[A-Za-z][\w.-]*)(?:["']?\s*[:=]\s*|(?(option)\s+|(?!)))""")
"""Matches the name before a value in a text: `name=`, `"name": `, `--name `."""
VALUE = re.compile(
    r"""(?P<quote>["'])(?:\\.|(?!(?P=quote))[^\\])*(?P=quote)?|(?:(?:Bearer|Basic)\s+)?[^\s"',;&#{}()\[\]]+""",
    re.DOTALL,
)


class Secret(str):
    """A secret that works like any other string. Pickled, it becomes None."""

    def __reduce__(self) -> Any:
        return type(None), ()


def is_secret(name: str) -> bool:
    """Whether an option, key or header of this name holds a secret."""
    words = [word.lower() for word in WORD.findall(name)]
    if not words:
        return False
    before, last = words[-2] if len(words) > 1 else "", words[-1]
    if last == "token":
        return before not in VOCABULARY
    return last.removesuffix("s") in SECRET or (last in ("key", "keys", "tokens") and before in OWNERS)


def masked(value: Any, name: str = "") -> Any:
    """A value that is safe to record.

    Args:
        value: an option's value. Mappings and lists are searched; each secret in them becomes MASK.
        name: the option's name. If it is secret, the whole value becomes MASK; None and booleans stay.
    """
    if is_secret(name):
        return value if value is None or isinstance(value, bool) else MASK
    if isinstance(value, dict):
        return {key: masked(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked(part) for part in value]
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """The text with MASK in place of secrets, safe to record.

    Secrets are looked for in URLs, JSON or YAML, `name=value`, `name: value` and `--name value`.
    """
    if text.lstrip().startswith(("{", "[")) and (parsed := _parse_mapping(text)) is not None:
        shown = masked(parsed)
        return text if shown == parsed else json.dumps(shown)
    text = CREDENTIALS.sub(f"{MASK}@", text)
    parts, end = [], 0
    for named in NAME.finditer(text):
        key_of_query = named["name"] == "key" and text[: named.start()].endswith(("?", "&"))
        if named.start() < end or not (key_of_query or is_secret(named["name"])):
            continue
        if value := VALUE.match(text, named.end()):
            quote = value["quote"] or ""
            parts += [text[end : named.end()], f"{quote}{MASK}{quote}"]
            end = value.end()
    return "".join([*parts, text[end:]])


def _parse_mapping(text: str) -> Any:
    """Parses a text as JSON or YAML. None unless it is a mapping or a list."""
    for read in (json.loads, yaml.safe_load):
        try:
            parsed = read(text)
        except (ValueError, yaml.YAMLError):
            continue
        return parsed if isinstance(parsed, dict | list) else None
    return None


def masked_arguments(argv: Sequence[str]) -> list[str]:
    """A command line's arguments with secrets masked, safe to record."""
    shown, hidden = [], False
    for argument in argv:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            shown.append(MASK if hidden else masked_text(argument))
            continue
        secret = is_secret(name)
        hidden = secret and not equals
        shown.append(f"{name}={MASK if secret else masked_text(value)}" if equals else argument)
    return shown


def hide_arguments() -> None:
    """Masks the secrets in this process's own sys.argv.

    Trackers record it (wandb: as `args` in its metadata).
    """
    sys.argv[1:] = masked_arguments(sys.argv[1:])


def conceal(args: Any) -> None:
    """Removes the secrets from a trainer's options, in place.

    The options are pickled with every checkpoint and sent to trackers. An option that is itself a secret (hub_token)
    stays usable, as a Secret; so does what DeepSpeed's configuration holds. Other options that contain secrets are
    needed only while the trainer is built, so their secrets are masked.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if is_secret(field.name) and isinstance(value, str):
            setattr(args, field.name, Secret(value))
        elif (isinstance(value, str) and "://" in value) or isinstance(value, dict | list):
            shown = masked(value)
            if shown != value:
                setattr(args, field.name, shown)
    _wrap_secrets(getattr(getattr(args, "hf_deepspeed_config", None), "config", None))


def _wrap_secrets(part: Any) -> None:
    """Replaces each secret in a mapping by a Secret, in place because others hold the same mapping."""
    if isinstance(part, list):
        for entry in part:
            _wrap_secrets(entry)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if is_secret(str(key)) and isinstance(value, str):
            part[key] = Secret(value)
        else:
            _wrap_secrets(value)
