"""An OpenAI-compatible server on 127.0.0.1 of a tiny real model, which can do as much as it is told, and misbehaves on
demand, one scripted answer after another.
"""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.threaded import Stallable, running

Answer = Callable[["Handler", dict[str, Any]], None]


class Model:
    """Log-probabilities of the tiny model, and samples by a seed, one sequence at a time.

    steered: {the last token's text ("" for any other): texts of tokens that are made far more probable after it}.
    """

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.known: dict[tuple[int, ...], np.ndarray] = {}
        self.lock = threading.Lock()
        self.steered: dict[str, list[str]] = {}

    @torch.no_grad()
    def all_logprobs(self, ids: list[int]) -> np.ndarray:
        """After each of the tokens, (T, V)."""
        logits_TV = self.model(input_ids=torch.tensor([ids])).logits[0]
        if self.steered:
            for logits_V, last in zip(logits_TV, ids, strict=True):
                for text in self.steered.get(self.tokenizer.decode([last]), self.steered[""]):
                    (token,) = self.tokenizer(text).input_ids
                    logits_V[token] += 11
        return torch.log_softmax(logits_TV, dim=-1).numpy()

    def next(self, ids: list[int]) -> np.ndarray:
        """After all of them, (V,)."""
        with self.lock:
            if tuple(ids) not in self.known:
                self.known[tuple(ids)] = self.all_logprobs(ids)[-1]
            return self.known[tuple(ids)]

    def draw(self, ids: list[int], n: int, rng: np.random.Generator) -> list[int]:
        new: list[int] = []
        for _ in range(n):
            p = np.exp(self.next(ids + new).astype(float))
            new.append(int(rng.choice(len(p), p=p / p.sum())))
            if new[-1] == self.tokenizer.eos_token_id:
                break
        return new

    def best(self, ids: list[int], n: int) -> list[int]:
        new: list[int] = []
        for _ in range(n):
            new.append(int(self.next(ids + new).argmax()))
        return new


class ModelServer(Stallable):
    """Serves `model` as "tiny". What it can do: echo, listed (most top log-probabilities), continues (flags, always,
    never, or drops the beginning, with its flags or without), several (n), seeds, ids, refuses_unknown (extra
    settings). `script`: answers that come first, each once.

    What a request without a seed draws follows from its words and from how often they came: the same in every run,
    whatever is asked beside it, and something else each time.
    """

    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(Handler)
        self.folder, self.model = folder, Model(folder)
        self.echo, self.listed, self.continues, self.several = True, 20, "flags", True
        self.seeds, self.refuses_unknown, self.ids, self.completions, self.usage = True, False, True, True, True
        self.counted: int | None = None  # the count of every prompt's tokens, whatever it is
        self.penalty = 1.0  # of tokens that were there already, in what is echoed or listed, unless a request says one
        self.strips = False  # white space at the ends of what is said on /chat/completions
        self.says: str | None = None  # what is said instead of what the model would
        self.script: list[Answer] = []
        self.after = 10**9  # so many requests are answered before the script begins
        self.seen: list[tuple[str, dict[str, Any]]] = []  # (path, body)
        self.times: Counter[str] = Counter()  # how often each body came
        self.answered: list[dict[str, Any]] = []  # bodies of requests whose answer went out
        self.keys: set[str | None] = set()
        self.slow = 0.0
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def do(self, *script: Answer, after: int = 0) -> None:
        """These answers come first, once so many more requests have been seen."""
        self.script, self.after = list(script), len(self.seen) + after


class Handler(BaseHTTPRequestHandler):
    server: ModelServer  # pyright: ignore[reportIncompatibleVariableOverride]
    seed: list[int]  # of what this request draws
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        if self.path == "/v1/models":
            made = {"created": int(time.time() * 1000), "root": "/models/tiny", "permission": []}
            self.reply({"data": [{"id": "tiny", **made}, {"id": "tiny-lora", **made}]})
        else:
            self.reply({"error": {"message": "not here"}}, 404)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            server.seen.append((self.path, body))
            words = json.dumps(body, sort_keys=True)
            server.times[words] += 1
            self.seed = [body["seed"]] if "seed" in body else [zlib.crc32(words.encode()), server.times[words]]
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            scripted = server.script.pop(0) if server.script and len(server.seen) > server.after else None
        try:
            time.sleep(server.slow)
            if scripted is not None:
                scripted(self, body)
            else:
                self.answer(body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, body: dict[str, Any]) -> None:
        """As the model has it."""
        if body.get("model") not in ("tiny", "tiny-lora"):
            self.refuse(404, f"The model `{body.get('model')}` does not exist.")
        elif self.server.refuses_unknown and (odd := body.keys() & {"top_k", "min_p", "repetition_penalty"}):
            self.refuse(400, f"Unrecognized request arguments: {sorted(odd)}")
        elif not self.server.seeds and "seed" in body:
            self.refuse(422, "seed: extra fields not permitted")
        elif self.path == "/v1/completions" and self.server.completions:
            self.complete(body)
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        else:
            self.refuse(404, "no such route")

    def reply(self, answer: Any, status: int = 200, **headers: str) -> None:
        self.raw(json.dumps(answer).encode(), status, None, **headers)

    def raw(self, content: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.reply({"error": {"message": message}}, status, **headers)

    def complete(self, body: dict[str, Any]) -> None:
        server, prompt = self.server, body["prompt"]
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        if not server.ids and not isinstance(prompts[0], str):
            self.refuse(400, "prompt: a string is expected")
            return
        rows = [server.model.tokenizer(p).input_ids if isinstance(p, str) else p for p in prompts]
        if body.get("logprobs") is not None and body["logprobs"] > server.listed:
            self.refuse(400, f"logprobs must be at most {server.listed}")
            return
        if body.get("echo") and server.echo:
            self.done(body, [self.echoed(ids, body) for ids in rows], sum(map(len, rows)))
        else:
            n = body.get("n", 1) if server.several else 1
            choices = [self.drawn(ids, body, k) for ids in rows for k in range(n)]
            self.done(body, choices, sum(map(len, rows)))

    def chat(self, body: dict[str, Any]) -> None:
        server, messages = self.server, body["messages"]
        if server.continues.startswith("drops") and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        flagged = server.continues in ("flags", "drops, not the flags") and body.get("continue_final_message")
        going_on = bool(flagged) or (messages[-1]["role"] == "assistant" and server.continues == "always")
        begin = not going_on and body.get("add_generation_prompt", True)
        rendered = server.model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=begin, continue_final_message=going_on
        )
        ids = server.model.tokenizer(rendered, add_special_tokens=False).input_ids
        n = body.get("n", 1) if server.several else 1
        choices = []
        for k in range(n):
            drawn = self.drawn(ids, {**body, "logprobs": body.get("top_logprobs")}, k)
            listed = drawn.pop("logprobs")
            text = drawn.pop("text")
            said = {"message": {"role": "assistant", "content": text.strip() if server.strips else text}}
            if body.get("logprobs"):
                if body["top_logprobs"] > server.listed:
                    self.refuse(400, f"top_logprobs must be at most {server.listed}")
                    return
                first = {"token": listed["tokens"][0], "logprob": listed["token_logprobs"][0]}
                top = [{"token": t, "logprob": v} for t, v in listed["top_logprobs"][0].items()]
                said["logprobs"] = {"content": [{**first, "top_logprobs": top}]}
            choices.append({**drawn, **said})
        self.done(body, choices, len(ids))

    def penalized(self, logprobs_V: np.ndarray, ids: list[int], body: dict[str, Any]) -> np.ndarray:
        """After the ids, as a server has it that puts its repetition penalty on what it tells."""
        told_V = logprobs_V.astype(float)
        told_V[ids] *= body.get("repetition_penalty", self.server.penalty)
        return told_V - np.logaddexp.reduce(told_V)

    def echoed(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        logprobs = [self.penalized(v, ids[: i + 1], body) for i, v in enumerate(self.server.model.all_logprobs(ids))]
        values = [None, *(float(logprobs[i][t]) for i, t in enumerate(ids[1:]))]
        tokens = [self.server.model.tokenizer.decode([i]) for i in ids]
        return {"text": "".join(tokens), "logprobs": {"tokens": tokens, "token_logprobs": values}}

    def drawn(self, ids: list[int], body: dict[str, Any], k: int) -> dict[str, Any]:
        model = self.server.model
        if body.get("temperature") == 0:
            new = model.best(ids, body["max_tokens"])
        else:
            new = model.draw(ids, body.get("max_tokens", 16), np.random.default_rng([*self.seed, k]))
        logprobs = self.penalized(model.next(ids), ids, body)
        top = np.argsort(-logprobs)[: body.get("logprobs") or 0]
        if not new:
            return {"text": "", "finish_reason": "length", "logprobs": None}
        listed = {model.tokenizer.decode([i]): float(logprobs[i]) for i in [*top, new[0]]}
        first = {"tokens": [model.tokenizer.decode([new[0]])], "token_logprobs": [float(logprobs[new[0]])]}
        text = model.tokenizer.decode(new, skip_special_tokens=True) if self.server.says is None else self.server.says
        for mark in body.get("stop", []):
            text = text.partition(mark)[0]
        ended = new[-1] == model.tokenizer.eos_token_id
        return {
            "text": text,
            "finish_reason": "stop" if ended else "length",
            "logprobs": {**first, "top_logprobs": [listed]},
        }

    def done(self, body: dict[str, Any], choices: list[dict[str, Any]], prompt_tokens: int) -> None:
        answer: dict[str, Any] = {"choices": [{"index": k, **c} for k, c in enumerate(choices)]}
        if self.server.usage:
            answer["usage"] = {"prompt_tokens": self.server.counted or prompt_tokens, "completion_tokens": len(choices)}
        assert all(
            math.isfinite(v) for c in choices for v in ((c.get("logprobs") or {}).get("token_logprobs") or [])[1:]
        )
        self.reply(answer)
        with self.server.lock:
            self.server.answered.append(body)


def status(code: int, message: str = "busy", **headers: str) -> Answer:
    return lambda handler, body: handler.refuse(code, message, **headers)


def no_json(handler: Handler, body: dict[str, Any]) -> None:
    handler.raw(b"<html>502 Bad Gateway</html>")


def no_choices(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply({"object": "text_completion", "note": "nothing today"})


def half(handler: Handler, body: dict[str, Any]) -> None:
    handler.raw(b'{"choices": [{"index": 0, "te')


def breaks_off(handler: Handler, body: dict[str, Any]) -> None:
    handler.raw(b'{"choices"', length=1000)
    handler.close_connection = True


def hangs_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def uncounted(handler: Handler, body: dict[str, Any]) -> None:
    """As the model has it, here and from now on without the counts of tokens."""
    handler.server.usage = False
    handler.answer(body)


def gathering(n: int, more: float) -> Answer:
    """Waits until n such requests are there, and then so many seconds for others."""
    here = threading.Barrier(n)

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        here.wait(60)
        time.sleep(more)
        handler.answer(body)

    return answer


def stalls(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.released.wait(60)
    handler.close_connection = True


def serving(folder: Path) -> AbstractContextManager[ModelServer]:
    return running(ModelServer(folder))
