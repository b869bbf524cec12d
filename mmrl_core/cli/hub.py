"""Sends an exported folder to the hub of Hugging Face, for a user who is logged in there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl_core.errors import MMRLError


def check_login(name: str) -> None:
    """Find out before anything is written whether a folder can be sent.

    Args:
        name: of the model on the hub, "owner/name", or "name" for one of the user's own.

    Raises:
        MMRLError: the name is none, the hub is switched off or not reached, or nobody is logged in.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise MMRLError("--push: HF_HUB_OFFLINE is set, so that nothing is sent. Unset it, or leave --push out.")
    if get_token() is None:
        raise MMRLError("--push: nobody is logged in on the hub. Run `hf auth login`, or set HF_TOKEN.")
    with _said(name):
        HfApi().whoami()
        HfApi().repo_exists(name)  # refuses what is no name


def push(folder: Path, name: str, message: str) -> str:
    """Upload a folder in one commit, and return the address of the model.

    Args:
        name: of the model on the hub. It is made if it is missing, and is then private.
        message: of the commit.

    Raises:
        MMRLError: the hub refuses it, or is not reached.
    """
    from huggingface_hub import HfApi

    with _said(name):
        api = HfApi()
        made = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    return str(made)


@contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's library raises its own, and those of an HTTP library that versions differ in
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MMRLError(f"--push {name}: {first}") from error
