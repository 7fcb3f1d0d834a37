"""Files of the Hugging Face hub: downloaded once into its cache, read from there ever after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from logging import ERROR, getLogger
from pathlib import Path

from dynammo_core.support.errors import WeightsError

_here_alone = ContextVar("here_alone", default=False)


@contextmanager
def without_the_net() -> Iterator[None]:
    """Take files of the hub from its cache alone: a model file that somebody sent decides no download."""
    token = _here_alone.set(True)
    try:
        yield
    finally:
        _here_alone.reset(token)


def hub_file(repository: str, name: str, *, most: int) -> Path:
    """Return the path of a file of a repository, `OWNER/NAME` or `OWNER/NAME@REVISION`, in the hub's cache.

    Args:
        repository: where it lies.
        name: of the file.
        most: bytes; a larger file is not downloaded.

    Raises:
        WeightsError: the file is a pickle, is not there, is too large, needs an accepted licence, or cannot be
            downloaded.
    """
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import HFValidationError

    where, _, revision = repository.partition("@")
    if not name.endswith((".safetensors", ".json")):
        raise WeightsError(
            f"{repository} has its weights in {name}, and loading such a file could execute what is in it",
            accepted="safetensors",
            remedy="Convert the file on a machine without patient data, and set backbone.weights to the result",
        )
    get = partial(huggingface_hub.hf_hub_download, where, name, revision=revision or None)
    try:
        # Without the net, asking whether a newer file is there would take half a minute, each time.
        held = huggingface_hub.try_to_load_from_cache(where, name, revision=revision or None)
        if isinstance(held, str) or _here_alone.get():
            return Path(held if isinstance(held, str) else get(local_files_only=True))
        getLogger(huggingface_hub.__name__).setLevel(ERROR)  # of each attempt: what failed is said below
        if (size := get(dry_run=True).file_size) > most:
            raise WeightsError(f"{name} of {where} has {size:,} bytes", accepted=f"at most {most:,}")
        return Path(get())
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{where} is gated: its owner gives it to people who accepted its licence",
            remedy=f"Accept the licence on the page of {where}, log in by `hf auth login` or set HF_TOKEN, try again",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{name} of {where} is not in the cache and cannot be downloaded from here",
            remedy=f"On a machine with internet access: dynammo-sim backbone fetch {_name(where)} --out FOLDER; copy "
            "the folder here, and set backbone.weights to the file in it",
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(
            f"{where} has no {name}: its weights may be a pickle, which could execute what is in it",
            accepted="safetensors",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"the hub has no repository {repository!r}, or keeps it from you",
            remedy="Correct backbone.name; for a private repository log in by `hf auth login` or set HF_TOKEN",
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"cannot download {name} of {where} ({type(error).__name__})", remedy="Try again when the hub answers"
        ) from error


def _name(repository: str) -> str:
    owner, _, name = repository.partition("/")
    return f"timm/{name}" if owner == "timm" else f"hf_hub:{repository}"
