"""`python -m eval data fetch`: downloads the public data into a data folder and checks each file's checksum.

A file is written as NAME.part beside its final place. After a break, a stall or a kill the download resumes with HTTP
Range. Once the checksum is right, the file is moved into place in one step. A file with another checksum is refused and
kept under another name. Files that are already right cost no request. Proxies (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) and
certificates (SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE) come from the environment.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from tqdm import tqdm

from eval.data.catalog import ASIDE, PARTIAL, PINNED, RIGHT, DataConfig, Pinned
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.files import prepare_output
from eval.secrets import masked_text

log = logging.getLogger(__name__)

RETRIES = 5
"""Attempts after the first. The count restarts whenever the file has grown beyond its largest size so far."""
LONGEST_WAIT = 60.0  # seconds; the most that a server's Retry-After can set
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class FetchError(Exception):
    """One file could not be fetched. The text is one line."""


class UnreachableError(FetchError):
    """No connection to the host. The other files of this host are then not tried."""


class _RetryError(Exception):
    """This response is of no use, but the next one may be. wait: seconds that the server requests, else 0."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass
class FetchConfig(DataConfig):
    """Options of `eval data fetch`."""

    timeout: float = field(
        default=30.0, metadata={"help": "seconds without a byte after which a connection is retried"}
    )
    mirror: str = field(
        default="", metadata={"help": "address that takes the place of https://HOST in every file's address"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise InputError(f"timeout must be a number of seconds above 0, not {self.timeout}")
        if self.mirror and not _is_address(self.mirror):
            raise InputError(f"mirror must be an address, http://HOST or https://HOST/PATH, not '{self.mirror}'")
        if self.folder.resolve() == SMALL_SET.resolve():
            raise InputError(f"data folder {self.folder} is the small set of the project; choose another folder")


def fetch(config: FetchConfig, pins: Sequence[Pinned] = PINNED, pause: float = 1.0) -> dict[str, Any]:
    """Downloads the chosen files; those that are right already are not requested.

    Args:
        config: folder, datasets, timeout and mirror.
        pins: the files to choose from.
        pause: seconds before the first retry. Each further retry doubles it.

    Returns:
        {"folder", "files": [{"path", "url", "outcome": right | fetched | failed, "problem"}], "error": one line or
        None}.

    Raises:
        InputError: the folder cannot be written, or a proxy or certificate file cannot be used. What has been
            downloaded is kept.
    """
    folder, files, unreachable = config.folder, [], {}
    prepare_output(folder)
    try:
        with _locked(folder), _client(config.timeout) as client:
            for pinned in config.chosen(pins):
                url, target = _url_of(pinned, config.mirror), folder / pinned.path
                host, problem = url.host, None
                try:
                    if host in unreachable and pinned.state(folder) != RIGHT:
                        raise FetchError(f"not tried: {unreachable[host]}")
                    outcome = "fetched" if _fetch_one(client, url, pinned, target, pause) else "right"
                except FetchError as error:
                    outcome, problem = "failed", masked_text(str(error))
                    if isinstance(error, UnreachableError):
                        unreachable[host] = problem
                log.info(
                    "%s: %s", pinned.path, problem or ("right" if outcome == "right" else "fetched, checksum right")
                )
                files.append(
                    {"path": pinned.path, "url": masked_text(str(url)), "outcome": outcome, "problem": problem}
                )
    except OSError as error:
        raise InputError(
            f"data folder {folder} cannot be used ({error.strerror or error}); free some space or choose another "
            "folder and run the same command again: what has come is kept"
        ) from error
    failed = [f["path"] for f in files if f["outcome"] == "failed"]
    error = (
        f"{len(failed)} of {len(files)} files were not fetched: {', '.join(failed)} (the reasons stand above); run the "
        "same command again to go on"
    )
    return {"folder": str(folder), "files": files, "error": error if failed else None}


def summary(result: dict[str, Any]) -> str:
    """Describes what `fetch` did and how to use the data."""
    counts = {o: sum(f["outcome"] == o for f in result["files"]) for o in ("fetched", "right", "failed")}
    text = f"{counts['fetched']} fetched, {counts['right']} were there and right, {counts['failed']} failed"
    return (
        f"{result['folder']}: {text}\nuse it: --data-dir {result['folder']}, or export "
        f"SELFCORRECT_DATA={result['folder']}"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, after waiting for another fetch that holds it. A killed fetch leaves no lock."""
    lock = FileLock(folder / ".fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another fetch is at work in %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _client(timeout: float) -> httpx.Client:
    """A client that follows redirects and uses the environment's proxy. InputError for a bad proxy or bundle."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    try:
        certificates: ssl.SSLContext | bool = True  # httpx reads SSL_CERT_FILE and SSL_CERT_DIR itself
        if bundle and not os.environ.get("SSL_CERT_FILE"):
            folder = Path(bundle).is_dir()
            certificates = ssl.create_default_context(
                cafile=None if folder else bundle, capath=bundle if folder else None
            )
        # identity: a Range must count the bytes of the file itself, not of a compressed form
        headers = {"Accept-Encoding": "identity"}
        return httpx.Client(verify=certificates, timeout=timeout, follow_redirects=True, headers=headers)
    except OSError as error:
        raise InputError(
            f"the certificates named by SSL_CERT_FILE or REQUESTS_CA_BUNDLE cannot be read ({error}); mend the path"
        ) from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"the proxy of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used ({error}); give http://HOST:PORT"
        ) from error


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _url_of(pinned: Pinned, mirror: str) -> httpx.URL:
    url = httpx.URL(pinned.url)
    return httpx.URL(mirror.rstrip("/") + url.raw_path.decode("ascii")) if mirror else url


def _fetch_one(client: httpx.Client, url: httpx.URL, pinned: Pinned, target: Path, pause: float) -> bool:
    """Fetches one file unless it is there and right.

    Returns:
        Whether the file had to be fetched.

    Raises:
        FetchError: the download failed, or the checksum is wrong.
        OSError: the file cannot be written.
    """
    if target.is_file() and pinned.matches(target):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PARTIAL)
    if not (part.is_file() and pinned.matches(part)):
        resumed = _transfer(client, url, pinned, part, pause)
        if resumed and not pinned.matches(part):
            log.info("%s: what was fetched before does not fit the rest; beginning anew", pinned.path)
            part.unlink()
            _transfer(client, url, pinned, part, pause)
        if not pinned.matches(part):
            checksum = pinned.checksum_of(part)
            aside = _refused_path(target, checksum)
            part.replace(aside)
            raise FetchError(f"wrong checksum, refused: expected {pinned.checksum}, found {checksum}; kept as {aside}")
    if target.is_file():
        aside = _refused_path(target, pinned.checksum_of(target))
        if not aside.exists():
            shutil.copy2(target, aside)
        log.info("%s: the file that lay there was not the pinned one; kept as %s", pinned.path, aside)
    part.replace(target)
    _sync(target.parent)
    return True


def _refused_path(target: Path, checksum: str) -> Path:
    return target.with_name(target.name + ASIDE + checksum.partition(":")[2][:8])


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _transfer(client: httpx.Client, url: httpx.URL, pinned: Pinned, part: Path, pause: float) -> bool:
    """Downloads `url` into `part`, resuming after the bytes that are there, with retries.

    Returns:
        Whether the last response was appended to existing bytes.

    Raises:
        FetchError: the server refuses, or RETRIES retries in a row brought nothing new.
    """
    most, failures = _size_of(part), 0
    while True:
        try:
            return _receive(client, url, pinned, part)
        except (httpx.TransportError, _RetryError) as error:
            have = _size_of(part)
            most, failures = (have, 0) if have > most else (most, failures + 1)
            reason = str(error) or type(error).__name__
            if failures > RETRIES:
                text = f"{url}: {reason}; {failures} attempts in a row brought nothing new, {have} bytes are kept"
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
                    remedy = "check the network, HTTPS_PROXY and SSL_CERT_FILE, or give a --mirror"
                    raise UnreachableError(f"{url.host} cannot be reached ({reason}); {remedy}") from error
                raise FetchError(text) from error
            retry_after = error.wait if isinstance(error, _RetryError) else 0.0
            wait = max(pause * 2 ** max(failures - 1, 0), retry_after)
            log.info("%s: %s; %d bytes have come, again in %g s", pinned.path, reason, have, wait)
            time.sleep(wait)
        except httpx.RequestError as error:
            raise FetchError(f"{url}: {error}") from error


def _receive(client: httpx.Client, url: httpx.URL, pinned: Pinned, part: Path) -> bool:
    """Makes one request and writes its body to `part`.

    Returns:
        Whether it was appended to existing bytes.

    Raises:
        _RetryError, httpx.TransportError: another attempt may help.
        FetchError: no attempt will help.
    """
    have = _size_of(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == 206 and have:
            first, total = _content_range(response)
            if first != have:
                part.unlink()
                raise _RetryError(f"asked for byte {have} and the server sends from {first}; beginning anew")
        elif status == 200:
            have, total = 0, _length(response)
        elif status == 416 and have:
            if pinned.matches(part):
                return True
            part.unlink()
            raise _RetryError(f"the server's file has no byte {have}; beginning anew")
        elif status in TRANSIENT_STATUSES:
            retry_after = response.headers.get("Retry-After", "")
            raise _RetryError(
                f"HTTP status {status}", min(float(retry_after), LONGEST_WAIT) if retry_after.isdigit() else 0.0
            )
        else:
            raise FetchError(f"{response.url}: HTTP status {status} {response.reason_phrase}")
        _write(response, part, have, total, pinned)
    return have > 0


def _write(response: httpx.Response, part: Path, have: int, total: int | None, pinned: Pinned) -> None:
    """Writes the response's body after the first `have` bytes of `part`.

    Raises:
        _RetryError: it ends before `total` bytes. total None: unknown, then the pinned size counts.
    """
    with (
        part.open("r+b" if have else "wb") as handle,
        tqdm(total=total or pinned.size, initial=have, desc=pinned.path, unit="B", unit_scale=True, leave=False) as bar,
    ):
        handle.seek(have)
        for block in response.iter_raw():
            handle.write(block)
            handle.flush()  # so that a kill loses nothing that has arrived
            bar.update(len(block))
        size = handle.tell()
        os.fsync(handle.fileno())
    if size < (total or pinned.size or 0):
        raise _RetryError(f"the connection ended after {size} of {total or pinned.size} bytes")


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) from a 206 response. Each is None if the response does not give it."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else None, int(total) if total.isdigit() else None


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _size_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
