"""The hub client's errors as ours: no space, no answer, or a refusal, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DataError, MergelibError, OfflineError, StoreError
from ..paths import refused_by_disk
from .repository import Repository

# Kinds of errors, most specific first, by class name: versions of the client use different HTTP
# libraries.
NO_ANSWER = {
    "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE)",
    "JSONDecodeError": "the answer does not come from the hub (a log-in or error page?)",
    "FileMetadataError": "the answer does not come from the hub (a log-in or error page?)",
    "ConnectionError": "the hub cannot be reached",
    "TimeoutError": "the hub cannot be reached",
    "TransportError": "the hub cannot be reached",
}
REFUSED = {
    "RevisionNotFoundError": "that revision no longer exists; "
    "delete its lock entry to use the newest",
    "GatedRepoError": "request access at {card}, then run `hf auth login`",
    "RepositoryNotFoundError": "no such repository, or a private one; see {card}",
    "RemoteEntryNotFoundError": "the hub lists a file that it does not have",
}


@contextmanager
def as_ours(repository: Repository, commit: str | None, detail: str = "") -> Iterator[None]:
    """Raise the errors of clients and readers in the block as ours; see :func:`translated`."""
    try:  # they have no common base class except Exception
        yield
    except Exception as error:
        if isinstance(error, MergelibError) and not isinstance(error, StoreError):
            raise
        raise translated(repository, commit, error, detail) from error


def translated(
    repository: Repository, commit: str | None, error: Exception, detail: str = ""
) -> MergelibError:
    """Return a client's error as one of ours.

    Args:
        repository: What was asked for.
        commit: At which commit; None is the newest.
        error: What the client raised.
        detail: Additional information, put before the reason.

    Returns:
        ``StoreError`` for a disk, ``OfflineError`` if no hub answered, else ``DataError``.
    """
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    kinds = {c.__name__ for e in chain for c in type(e).__mro__}
    where = f"'{repository.name}': {repository.id} at {commit or 'its newest revision'}"
    if any(map(refused_by_disk, chain)):
        return StoreError(
            f"{where} cannot be written to the cache ({said(error)}). Free some space or get "
            "write access, or set HF_HOME to another folder."
        )
    refused = next((why for kind, why in REFUSED.items() if kind in kinds), "")
    reason = next((why for kind, why in NO_ANSWER.items() if kind in kinds), "")
    for status in (getattr(getattr(e, "response", None), "status_code", None) for e in chain):
        # For the hub's own 4xx answers the client has classes; any other one comes from a proxy.
        if status and (status == 429 or status >= 500 or not refused):
            reason = f"its address answers with status {status}"
    if not refused and not reason and "LocalEntryNotFoundError" in kinds:
        reason = "it is not in the cache"
    if reason and (not refused or "OfflineModeIsEnabled" in kinds):
        return OfflineError(
            f"{where} cannot be fetched: {detail}{reason}; complete files are kept. "
            "Connect (HF_HUB_OFFLINE unset) and run `python -m mergelib data fetch` again."
        )
    if "Consistency check failed" in str(error):
        refused = "the download is shorter than the hub says (a broken connection?); fetch again"
    why = refused.format(card=repository.card) or "the client refused it"
    return DataError(f"{where} cannot be fetched: {detail}{why}. ({said(error)})")


def said(error: BaseException) -> str:
    """Return kind and message of a client's error in at most 300 characters, without secrets.

    Access tokens are removed, and the query parts of URLs, which contain signatures.
    """
    text = " ".join(str(error).split())
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(variable, "").strip():
            text = text.replace(secret, "***")
    # A token may also be in one of the client's files.
    text = re.sub(r"(?i)\bbearer\s+\S+|\bhf_[a-z0-9]{16,}", "***", text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return f"{type(error).__name__}: {text[:300]}"
