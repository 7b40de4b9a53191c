"""JSON over HTTP to a server that may be slow, busy or broken: many requests at a time, each tried again with patience.

Tried again, waiting longer each time (with seeded jitter, or as long as the server's Retry-After says): connections
that fail or break off, time-outs, the statuses in AGAIN, and, a few times, answers that are not what was asked for. Any
other status ends at once with what the server says. The key goes into one header and nowhere else: no error and no log
has it, what the server repeats of it, in whatever spelling JSON has for it, is masked, and redirects, which would carry
it elsewhere, are not followed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import random
import re
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from eval.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
MAX_RETRY_AFTER = 600.0  # a longer Retry-After ends the command
FEW_TRIES = 3  # of answers of another form; while it is found out what a server can do, of status 500
LONG, TOLD_EVERY = 5.0, 30.0  # waits of so many seconds are told, one line in so many seconds
MIN_MASKED_KEY = 8  # from this length on a key is masked in answers too, where a short one may be an ordinary word
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading an answer raises that has another form than the one asked for, or is nested too deeply."""


class RefusedError(InputError):
    """The server refused a request with a status that another try would not change."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class RetryError(InputError):
    """A request that was tried as often as allowed. status: the last one, None without one; garbage: an answer of
    another form.
    """

    def __init__(self, line: str, status: int | None, malformed: bool = False) -> None:
        super().__init__(line)
        self.status, self.malformed = status, malformed


class TransientError(Exception):
    """A try that failed, and may be followed by another."""

    def __init__(
        self, reason: str, status: int | None = None, retry_after: float | None = None, malformed: bool = False
    ) -> None:
        super().__init__(reason)
        self.status, self.retry_after, self.malformed = status, retry_after, malformed


class Client:
    """Requests to one server, at most `concurrency` at a time, a time-out of `timeout` seconds for each.

    used: requests, retries and tokens (as the server counts them) so far. key_from: the variable the key is from.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        key_from: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 6,
        seed: int = 0,
    ) -> None:
        self.base_url, self.key, self.key_from = base_url.rstrip("/"), key, key_from
        self.key_pattern = _key_pattern(key) if key else None
        self.timeout, self.retries = timeout, retries
        self.jitter = random.Random(seed)
        self.used = {"requests": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.probing = False
        self.last_warning = -math.inf  # when it was last said that it takes long
        try:
            self.http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(timeout),
                limits=httpx.Limits(max_connections=concurrency),
            )
        except (OSError, ImportError, ValueError, httpx.InvalidURL) as error:
            raise InputError(
                f"no connection can be made with the certificates or the proxy that the environment names "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); correct or unset SSL_CERT_FILE, "
                "SSL_CERT_DIR, ALL_PROXY, HTTP_PROXY and HTTPS_PROXY"
            ) from None
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(concurrency)
        weakref.finalize(self, _close, self.loop, self.http)

    def run_all(self, jobs: Sequence[Coroutine[Any, Any, T]]) -> Iterator[T]:
        """Runs the jobs at the same time; yields what they return as they end.

        The first that fails ends all, after what is done by then has been yielded; so does Ctrl-C, at once.
        """
        ended: asyncio.Queue[tuple[T | None, Exception | None]] = asyncio.Queue()

        async def run(job: Coroutine[Any, Any, T]) -> None:
            try:
                result = await job
            except Exception as error:
                ended.put_nowait((None, error))
            else:
                ended.put_nowait((result, None))

        tasks = [self.loop.create_task(run(job)) for job in jobs]
        failed: Exception | None = None
        try:
            for _ in tasks:
                if failed is not None and ended.empty():
                    break
                result, error = self.loop.run_until_complete(ended.get())
                if error is None:
                    yield result  # pyright: ignore[reportReturnType]
                failed = failed or error
            if failed is not None:
                raise failed
        finally:
            started = {*tasks, *asyncio.all_tasks(self.loop)}  # also what a job that failed has begun
            for task in started:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*started, return_exceptions=True))
            for job in jobs:
                job.close()  # of a task that had not begun

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Runs one job."""
        (result,) = self.run_all([job])
        return result

    async def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T], tries: int | None = None) -> T:
        """What `read` makes of the answer; it raises one of UNREADABLE for an answer of another form."""
        return await self._request("POST", self.base_url + path, body, read, tries)

    async def get(self, url: str, read: Callable[[Any], T], tries: int | None = None) -> T:
        """The same of a GET of a whole address."""
        return await self._request("GET", url, None, read, tries)

    async def _request(
        self, method: str, url: str, body: dict[str, Any] | None, read: Callable[[Any], T], tries: int | None
    ) -> T:
        waited = 0.0
        async with self.slots:  # kept while waiting: a server in trouble is not asked by others meanwhile
            for attempt in itertools.count(1):
                try:
                    return await self._attempt(method, url, body, read)
                except TransientError as error:
                    allowed = tries or self.retries + 1
                    if error.malformed or (self.probing and error.status == 500):
                        allowed = min(allowed, FEW_TRIES)
                    reason = f"{url}: {error}"
                    if attempt >= allowed:
                        tries_text = f" ({attempt} tries)" if attempt > 1 else ""
                        raise RetryError(
                            f"{reason}{tries_text}; {_remedy(error)}", error.status, error.malformed
                        ) from None
                    wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * self.jitter.uniform(0.5, 1)
                    wait = max(wait, error.retry_after or 0)
                    if wait > MAX_RETRY_AFTER:
                        raise RetryError(
                            f"{reason}; it asks to wait {wait:.0f} seconds: run the same command again then, "
                            "it goes on",
                            error.status,
                        ) from None
                waited += wait
                self.used["retries"] += 1
                if waited > LONG and time.monotonic() - self.last_warning > TOLD_EVERY:
                    self.last_warning = time.monotonic()
                    log.warning("waiting for %s; try %d of %d in %.0f s", reason, attempt + 1, allowed, wait)
                await asyncio.sleep(wait)
        raise AssertionError  # the loop ends by return or raise

    async def _attempt(self, method: str, url: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        self.used["requests"] += 1
        try:
            async with asyncio.timeout(self.timeout):
                response = await self.http.request(method, url, json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise TransientError(f"no answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            masked = self.masked(" ".join(str(error).split()))
            if "CERTIFICATE" in masked.upper():
                raise InputError(f"{url}: {masked[:200]}; set SSL_CERT_FILE to the certificate to trust") from None
            raise TransientError(f"no connection ({type(error).__name__}: {masked[:200]})") from None
        status = response.status_code
        if status in RETRY_STATUSES:
            raise TransientError(f"status {status}{self._error_message(response)}", status, _retry_after(response))
        if status >= 300:
            raise RefusedError(self._refusal(url, response), status)
        text = response.text
        masked = self.masked(text)
        try:
            answer = json.loads(text)
            if masked != text:
                masked = json.dumps(_map_strings(self.masked, answer))
                if self.key and len(self.key) >= MIN_MASKED_KEY:
                    answer = json.loads(masked)
            usage = answer.get("usage") or {}
            for name in ("prompt_tokens", "completion_tokens"):
                self.used[name] += int(usage.get(name) or 0)
            return read(answer)
        except MALFORMED as error:
            reason = f"an answer without what was asked ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            raise TransientError(f"{self.masked(reason)}: {masked[:120]!r}", malformed=True) from None

    def masked(self, text: str) -> str:
        """The text without the key, also where JSON escapes it."""
        return self.key_pattern.sub("***", text) if self.key_pattern else text

    def _error_message(self, response: httpx.Response) -> str:
        """What the server says of an error, shortened."""
        text = response.text
        try:
            body = json.loads(text)
            body = body.get("error", body)
            text = str(body if isinstance(body, str) else body.get("message") or body.get("detail") or text)
        except MALFORMED:
            pass  # no JSON: the text itself
        text = " ".join(self.masked(text).split())
        return f": {text[:200]}" if text else ""

    def _refusal(self, url: str, response: httpx.Response) -> str:
        status, message = response.status_code, self._error_message(response)
        if status < 400:
            location = self.masked(response.headers.get("location", "an unnamed place"))
            return f"{url} redirects to {location}, which is not followed; give the server's own address as --base-url"
        remedies = {
            401: f"put the key into the environment variable {self.key_from} (another one: --api_key_env NAME)",
            403: f"put a key that may do this into the environment variable {self.key_from}",
            404: "--base-url usually ends with /v1, and --model is a name that the server serves",
        }
        return f"{url}: status {status}{message}; {remedies.get(status, 'the request would be the same another time')}"


def _key_pattern(key: str) -> re.Pattern[str]:
    """Of a printable key: each character as it is or as \\u and its number, behind any backslashes."""
    return re.compile("".join(rf"\\*(?:{re.escape(c)}|u(?i:{ord(c):04x}))" for c in key))


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    """A value of JSON with each of its strings changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(change, entry) for entry in value]
    if isinstance(value, dict):
        return {change(name): _map_strings(change, entry) for name, entry in value.items()}
    return value


def _close(loop: asyncio.AbstractEventLoop, http: httpx.AsyncClient) -> None:
    """Closes connections and loop, unless memory is being freed in the middle of another loop's work."""
    if asyncio._get_running_loop() is None and not loop.is_closed():
        loop.run_until_complete(http.aclose())
        loop.close()


def _remedy(error: TransientError) -> str:
    if error.malformed:
        return "is --base-url that of an OpenAI-compatible server?"
    return (
        "see that the server runs, and run the same command again: it goes on with what is there (--retries, --timeout)"
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the header asks to wait, given as a number or a date."""
    header = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # a date, or nothing
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
