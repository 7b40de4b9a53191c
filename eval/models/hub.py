"""Resolves a hub id's revision to its commit, and explains in one line why a repository cannot be fetched."""

from __future__ import annotations

from collections.abc import Iterator

from httpx2 import HTTPError
from huggingface_hub import is_offline_mode, resolve_revision
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from eval.errors import InputError


def commit_of(repo: str, revision: str | None = None, repo_type: str | None = None) -> str:
    """Resolves a branch, tag or commit of a hub repository to its commit.

    Without network, or with HF_HUB_OFFLINE=1, the cache is used.

    Args:
        repo: the hub id.
        revision: branch, tag or commit; None is the default branch.
        repo_type: None for a model, "dataset" for a dataset.

    Raises:
        InputError: the commit cannot be determined.
    """
    try:
        resolution = resolve_revision(repo, repo_type=repo_type, revision=revision, local_files_only=is_offline_mode())
        return resolution.resolved
    except (HTTPError, OSError, ValueError, RevisionResolutionError) as error:
        raise InputError(explain_hub_error(error, repo, revision, repo_type)) from error


def explain_hub_error(
    error: BaseException, repo: str, revision: str | None = None, repo_type: str | None = None
) -> str:
    """Explains in one line an error of huggingface_hub, or of transformers on top of it, about a repository."""
    at = f" at revision '{revision}'" if revision else ""
    page = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return (
                f"{repo} is gated: ask for access on {page}, then log in with `hf auth login` "
                "(or set HF_TOKEN) and run the command again"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return (
                f"{repo} is neither a local folder nor on the hub, or it is private: check the name, or log in with "
                "`hf auth login`"
            )
        if isinstance(cause, RevisionNotFoundError):
            return f"{repo} has no revision '{revision}': {page}/tree/main lists its branches"
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | RevisionResolutionError):
            fetch = f"hf download {repo}" + (f" --repo-type {repo_type}" if repo_type else "")
            fetch += f" --revision {revision}" if revision else ""
            return (
                f"{repo}{at} is neither a {repo_type or 'model'} folder nor a hub id that can be reached: there is no "
                f"network (or HF_HUB_OFFLINE is set) and the cache does not have it; run `{fetch}` where there is "
                "network"
            )
        if isinstance(cause, HFValidationError):
            return f"{repo} is neither a local file or folder that is there nor the form of a hub id (owner/name)"
    return f"{repo}{at} cannot be fetched: {first_lines(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_lines(error: BaseException) -> str:
    """The first two lines of an error's text, joined; its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
