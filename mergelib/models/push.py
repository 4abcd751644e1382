"""Upload what mergelib saved to the hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from ..core.documents import read_json, user_path
from ..core.errors import ConfigError, MergelibError, OfflineError, shortened
from ..core.hub.errors import said
from .folders import RECORD


class Pushed:
    """What has ``save_pretrained`` can be pushed."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        overwrite: bool = False,
        **saved: Any,
    ) -> str:
        """``save_pretrained`` into a temporary folder, which ``push_folder`` uploads.

        Args:
            repo_id, private, overwrite: as of ``push_folder``.
            saved: options of ``save_pretrained``, such as ``scores`` for the card.
        """
        with tempfile.TemporaryDirectory(prefix="mergelib-push-") as scratch:
            folder = self.save_pretrained(Path(scratch, "model"), **saved)
            return push_folder(folder, repo_id, private=private, overwrite=overwrite)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    overwrite: bool = False,
) -> str:
    """Upload a folder that ``save_pretrained``, ``merge`` or ``align`` wrote, in one commit.

    Args:
        folder: its files are uploaded, an edited card as it is, but none that was put beside them.
        repo_id: "user/name"; the repository is created if it does not exist.
        private: who can see a new repository; default: as the account says.
        overwrite: whether a repository may hold files already. Its history keeps them.

    Returns:
        The repository's address.

    Raises:
        ConfigError: another folder, no id, a repository with files, no permission to write.
        OfflineError: the hub cannot be reached.
    """
    path = user_path(folder)
    is_ours = (path / RECORD).is_file()
    files = read_json(path / RECORD, RECORD).get("files") if is_ours else None
    if not isinstance(files, dict):
        raise ConfigError(
            f"'{folder}' is no folder that mergelib wrote as a whole; push one with the "
            f"{RECORD} that lists its files."
        )
    api = HfApi(library_name="mergelib")
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        names = sorted({*api.list_repo_files(address.repo_id)} - {".gitattributes"})
        if names and not overwrite:
            raise ConfigError(
                f"'{repo_id}' holds {shortened(names[0])} already; choose another name, or add a "
                "commit to it (overwrite=True, --overwrite)."
            )
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=path,
            allow_patterns=[*files, RECORD],
            commit_message="Upload with mergelib",
        )
    except MergelibError:
        raise
    except HFValidationError as error:
        raise ConfigError(f"'{shortened(repo_id)}' is no hub id; write user/name.") from error
    except Exception as error:  # the client's HTTP library has errors of its own
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise ConfigError(
                f"The hub refuses to write '{repo_id}': run `hf auth login` with a token that may "
                f"write there. ({said(error)})"
            ) from error
        raise OfflineError(f"'{repo_id}' was not uploaded; try again. ({said(error)})") from error
    return str(address)
