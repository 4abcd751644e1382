"""What the hub's client says, in our words: no room, no answer, a refusal, and nothing secret."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from ..errors import DataError, MergelibError, OfflineError, StoreError
from .repository import Repository

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
# Kinds of errors, most special first, by the names of their classes: which HTTP library lies below
# differs between versions of the client.
NO_ANSWER = {
    "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE)",
    "JSONDecodeError": "what answers is not the hub (a log-in or error page?)",
    "FileMetadataError": "what answers is not the hub (a log-in or error page?)",
    "ConnectionError": "the hub cannot be reached",
    "TimeoutError": "the hub cannot be reached",
    "TransportError": "the hub cannot be reached",
}
REFUSED = {
    "RevisionNotFoundError": "that revision is gone; delete its lock entry to take the newest",
    "GatedRepoError": "access has to be asked for at {card}, then `hf auth login`",
    "RepositoryNotFoundError": "no such repository, or a private one; see {card}",
    "RemoteEntryNotFoundError": "it lists a file that it does not have",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def translated(
    repository: Repository, commit: str | None, error: Exception, detail: str = ""
) -> MergelibError:
    """Return a client's error as one of ours.

    Args:
        repository: What was asked for.
        commit: At which commit; None is the newest.
        error: What the client raised.
        detail: What we know beside it, said before the reason.

    Returns:
        ``StoreError`` for a disk, ``OfflineError`` where no hub answered, else ``DataError``.
    """
    chain = list(_chain(error))
    kinds = {c.__name__ for e in chain for c in type(e).__mro__}
    where = f"'{repository.name}': {repository.id} at {commit or 'its newest revision'}"
    if any(isinstance(e, OSError) and e.errno in DISK for e in chain):
        return StoreError(
            f"{where} cannot be written to the cache ({said(error)}). Make room or get write "
            "access, or set HF_HOME to another folder."
        )
    refused = next((why for kind, why in REFUSED.items() if kind in kinds), "")
    reason = next((why for kind, why in NO_ANSWER.items() if kind in kinds), "")
    for status in (getattr(getattr(e, "response", None), "status_code", None) for e in chain):
        # The hub says which 4xx it means, and the client has a class for it; else it is a proxy's.
        if status and (status in (429,) or status >= 500 or not refused):
            reason = f"its address answers with status {status}"
    if not refused and not reason and "LocalEntryNotFoundError" in kinds:
        reason = "it is not in the cache"
    if reason and (not refused or "OfflineModeIsEnabled" in kinds):
        return OfflineError(
            f"{where} is not to be had: {detail}{reason}; files that were complete are kept. "
            "Connect (HF_HUB_OFFLINE unset) and run `python -m mergelib data fetch` again."
        )
    if "Consistency check failed" in str(error):
        refused = "what came is not as long as the hub says (a cut connection?); fetch again"
    why = refused.format(card=repository.card) or "the client refused it"
    return DataError(f"{where} cannot be fetched: {detail}{why}. ({said(error)})")


def said(error: BaseException) -> str:
    """Return kind and message of a client's error in at most 300 characters, without secrets.

    Access tokens go, and the queries of addresses, which carry signatures.
    """
    text = " ".join(str(error).split())
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(variable, "").strip():
            text = text.replace(secret, "***")
    # A token may also lie in a file of the client's.
    text = re.sub(r"(?i)\bbearer\s+\S+|\bhf_[a-z0-9]{16,}", "***", text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return f"{type(error).__name__}: {text[:300]}"
