"""What the hub's client says, in our words: whether the hub answered, what it refused, and nothing that is secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 10.0
COMMIT = re.compile(r"[0-9a-f]{40}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def kinds(error: BaseException) -> set[str]:
    """Class names of an error and of those that it was raised from, base classes included. By name: which HTTP library lies below
    differs between versions of the client."""
    return {c.__name__ for e in chain(error) for c in type(e).__mro__}


def no_answer(error: BaseException) -> str | None:
    """Why the hub counts as unreachable, or None when it answered."""
    for e in chain(error):
        own = {c.__name__ for c in type(e).__mro__}
        if "OfflineModeIsEnabled" in own:
            return "offline mode is on (HF_HUB_OFFLINE)"
        status = getattr(getattr(e, "response", None), "status_code", None)
        # The hub says which 4xx it means, and the client then raises a subclass; a bare one is some proxy's.
        if status is not None and (
            status == 429 or status >= 500 or type(e).__name__ == "HfHubHTTPError"
        ):
            return f"its address answers with status {status}"
        if isinstance(e, json.JSONDecodeError) or "FileMetadataError" in own:
            return "what answers is not the hub (a log-in or error page?)"
        if isinstance(e, (ConnectionError, TimeoutError)) or "TransportError" in own:
            return f"the hub cannot be reached ({type(e).__name__})"
    return None


def refusal(error: BaseException, what: str, card: str | None) -> str:
    """Why the hub, which answered, did not give ``what``; an empty text where it is none of the usual reasons."""
    own = kinds(error)
    see = f"; see {card}" if card else ""
    if "RevisionNotFoundError" in own:
        return "that revision is gone"
    if "GatedRepoError" in own:
        return f"access has to be asked for{see}, then `hf auth login`"
    if own & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return f"no such {what}, or a private one{see}"
    return ""


def said(error: BaseException) -> str:
    """Kind and message of a client's error on one line of at most 300 characters, for people and logs: without access tokens and without
    the queries of addresses, which carry signatures."""
    text = " ".join(str(error).split())
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(variable, "").strip():
            text = text.replace(secret, "***")
    text = re.sub(
        r"(?i)\bbearer\s+\S+|\bhf_[a-z0-9]{16,}", "***", text
    )  # a token may also lie in a file of the client's
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def offline() -> Iterator[None]:
    """Inside, no request leaves this process: what the client's caches hold has to do."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # asked at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
