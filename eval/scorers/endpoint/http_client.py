"""JSON over HTTP to a server that may be slow, busy or broken: many requests at a time, with patient retries.

Retried: connections that fail or break off, time-outs, the statuses in RETRY_STATUSES and, a few times, malformed
answers. Each wait is longer than the last, with seeded jitter, or as long as the server's Retry-After says. Any other
error status ends the run at once with the server's message.

The key goes into one header and nowhere else. Errors and logs never contain it: where the server repeats it, in any
spelling that JSON allows, it is masked. Redirects would carry it to another place and are not followed.
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
MAX_RETRY_AFTER = 600.0  # seconds; a longer Retry-After ends the command
FEW_TRIES = 3  # of a request with malformed answers; of status 500 while the server's capabilities are probed
LONG, TOLD_EVERY = 5.0, 30.0  # seconds: log a request's waits when they exceed LONG, at most once per TOLD_EVERY
MIN_MASKED_KEY = 8  # characters: a shorter key is not masked in answers, where it may be an ordinary word
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What parsing raises for an answer that has another form than requested, or that is nested too deeply."""


class RefusedError(InputError):
    """The server refused a request with a status that a retry would not change."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class RetryError(InputError):
    """A request failed as often as retries allow.

    status: the last HTTP status, or None without one. malformed: the last answer had another form than requested.
    """

    def __init__(self, line: str, status: int | None, malformed: bool = False) -> None:
        super().__init__(line)
        self.status, self.malformed = status, malformed


class TransientError(Exception):
    """An attempt failed and may be retried. retry_after: the seconds that the server asks to wait, or None."""

    def __init__(
        self, reason: str, status: int | None = None, retry_after: float | None = None, malformed: bool = False
    ) -> None:
        super().__init__(reason)
        self.status, self.retry_after, self.malformed = status, retry_after, malformed


class Client:
    """Sends requests to one server.

    Attributes:
        used: Requests, retries and tokens so far, tokens as the server counts them.
        probing: Whether the server's capabilities are being probed; status 500 then gets FEW_TRIES tries only.

    Args:
        base_url: Address of the API, such as http://host:8000/v1.
        key: The API key, or None.
        key_from: The environment variable that the key is from, for error messages.
        concurrency: Requests at a time.
        timeout: Seconds that a request may take.
        retries: Retries of a request.
        seed: Seed of the jitter.

    Raises:
        InputError: The certificates or the proxy that the environment names cannot be used.
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
        self.last_warning = -math.inf  # time.monotonic() of the last warning about a long wait
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
        """Runs the jobs concurrently and yields their results as they end.

        The first failure ends all jobs, after the results that are ready have been yielded. Ctrl-C ends them at once.
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
            started = {*tasks, *asyncio.all_tasks(self.loop)}  # including tasks that a failed job started
            for task in started:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*started, return_exceptions=True))
            for job in jobs:
                job.close()  # for tasks that never started

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Runs one job and returns its result."""
        (result,) = self.run_all([job])
        return result

    async def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T], tries: int | None = None) -> T:
        """Sends a POST request.

        Args:
            path: Appended to the base URL.
            body: The JSON body.
            read: Parses the answer; raises one of MALFORMED for an answer of another form.
            tries: The most tries; by default retries + 1.

        Returns:
            What `read` returns.

        Raises:
            RefusedError: The server refused the request.
            RetryError: All tries failed.
        """
        return await self._request("POST", self.base_url + path, body, read, tries)

    async def get(self, url: str, read: Callable[[Any], T], tries: int | None = None) -> T:
        """Sends a GET request to a full URL; otherwise like `post`."""
        return await self._request("GET", url, None, read, tries)

    async def _request(
        self, method: str, url: str, body: dict[str, Any] | None, read: Callable[[Any], T], tries: int | None
    ) -> T:
        waited = 0.0
        async with self.slots:  # kept while waiting, so that other requests spare a server in trouble
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
        """The text with the key masked, however JSON escapes it."""
        return self.key_pattern.sub("***", text) if self.key_pattern else text

    def _error_message(self, response: httpx.Response) -> str:
        """The server's error message, shortened, as ": message"; "" if there is none."""
        text = response.text
        try:
            body = json.loads(text)
            body = body.get("error", body)
            text = str(body if isinstance(body, str) else body.get("message") or body.get("detail") or text)
        except MALFORMED:
            pass  # not JSON: use the text itself
        text = " ".join(self.masked(text).split())
        return f": {text[:200]}" if text else ""

    def _refusal(self, url: str, response: httpx.Response) -> str:
        """The error line for a status that is not retried, with a remedy."""
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
    """Matches a printable key. Each character may be a JSON escape of four digits, behind any number of backslashes."""
    return re.compile("".join(rf"\\*(?:{re.escape(c)}|u(?i:{ord(c):04x}))" for c in key))


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    """Applies `change` to every string of a JSON value, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(change, entry) for entry in value]
    if isinstance(value, dict):
        return {change(name): _map_strings(change, entry) for name, entry in value.items()}
    return value


def _close(loop: asyncio.AbstractEventLoop, http: httpx.AsyncClient) -> None:
    """Closes connections and loop, unless the garbage collector calls this while another loop runs."""
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
    """Seconds that the Retry-After header asks to wait, given as a number or a date; None without a valid one."""
    header = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # a date, or nothing
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
