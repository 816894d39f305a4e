"""Models of the Hugging Face Hub, by their names.

    org/name                    the newest files of the repository org/name
    org/name@revision           of a branch, a tag or a commit
    org/name@revision:file      one file

A local path that exists wins over a name. Files come through huggingface_hub: they are kept in its
cache (HF_HOME), a download goes on where it was interrupted, and HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE are its variables. Only the files that the reader asks for are fetched. Without a
network the files of the cache are used.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathError, PathLike

_log = logging.getLogger(__name__)

_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._-")
_SECONDS = 20.0  # for the list of files of a repository

# choose(names of all files, read) -> names of the files to fetch; read(name) fetches one first
Choose: TypeAlias = "Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]]"


class HubError(PathError):
    """A repository or a file of the Hub cannot be had. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """The name of a repository.

    Attributes:
        repository: "org/name".
        revision: branch, tag or commit.
        file: a file of it; "" = the model as a whole.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repository}{revision}{self.file and ':'}{self.file}"


def name_of(path: PathLike) -> HubName | None:
    """Returns the name that a text is; None if it is a path that exists, or can be no name."""
    text = os.fspath(path)
    before, _, file = text.partition(":")
    repository, at, revision = before.partition("@")
    parts = repository.split("/")
    is_name = len(parts) == 2 and all(
        part and part[0] not in ".-" and set(part) <= _CHARACTERS for part in parts
    )
    if not is_name or (at and not revision) or "//" in file or Path(path).exists():
        return None
    return HubName(repository, revision or "main", file)


def fetch(name: HubName, choose: Choose) -> Path:
    """Fetches files of a repository, those that are not in the cache.

    Args:
        name: of the repository.
        choose: says which files.

    Returns:
        The directory that contains them, under their names.

    Raises:
        HubError: there is no such repository, revision or file; it may not be read; or there is no
            network, and not all files are in the cache.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # what every error of its HTTP library is, and those of an answer too
    of_http: Any = errors.HfHubHTTPError.__bases__[0]
    where = f"{name.repository} at {huggingface_hub.constants.ENDPOINT}"
    about: dict[str, Any] = {"repo_id": name.repository, "revision": name.revision}
    try:
        try:
            listed = huggingface_hub.HfApi().model_info(**about, timeout=_SECONDS)
        except errors.HfHubHTTPError:
            raise
        except (errors.OfflineModeIsEnabled, of_http) as error:
            return _cached(name, choose, error)
        names = [str(file.rfilename) for file in listed.siblings or ()]

        def read(file: str) -> Path:
            return Path(huggingface_hub.hf_hub_download(filename=file, **about))

        wanted = choose(names, read)
        if missing := [file for file in wanted if file not in names]:
            raise HubError(
                f"{where} (revision {name.revision}) has no file {missing[0]!r}; it has "
                f"{', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}."
            )
        patterns = [_literally(file) for file in wanted]
        return Path(huggingface_hub.snapshot_download(**about, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{where} is gated: its owner has not let you in. Ask for access on its page, then log "
            "in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{where} has no revision {name.revision!r}. Give a branch, a tag or a commit: "
            f"{name.repository}@REVISION."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise HubError(
            f"There is no file or directory {str(name)!r} here, and no repository {where} that you "
            "may read. Check the path or the name; for a private one log in with `hf auth login`, "
            "or set HF_TOKEN."
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(
            f"A file of {where} cannot be fetched: {_line(error)}. Run it again with a network: "
            "what is there already is kept."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise HubError(
            f"{where} answers with status {status}: {_line(error)}. "
            + (
                "Log in with `hf auth login`, or set HF_TOKEN."
                if status in (401, 403)
                else "Try again later; what was fetched is kept."
            )
        ) from error
    except (errors.OfflineModeIsEnabled, of_http) as error:
        raise HubError(
            f"The connection to {where} broke: {_line(error)}. Run it again: the download goes on "
            "where it stopped."
        ) from error
    except PathError:
        raise
    except OSError as error:
        raise HubError(f"Files of {where} cannot be kept in the cache: {_line(error)}.") from error


def _cached(name: HubName, choose: Choose, error: BaseException) -> Path:
    """Returns the directory of the cache with all files that are wanted."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.repository.replace('/', '--')}"
    ref = cache / "refs" / name.revision
    commit = paths.regular(ref).read_text().strip() if ref.exists() else name.revision
    folder = cache / "snapshots" / commit
    names = list(_files_below(folder)) if folder.is_dir() else []
    wanted = choose(names, lambda file: folder / file) if names else []
    missing = [file for file in wanted if file not in names]
    if names and not missing:
        _log.warning("%s: no connection (%s); the files of the cache are used.", name, _line(error))
        return folder
    what = f"{len(missing)} files, such as {missing[0]}, are" if names else "it is"
    raise HubError(
        f"There is no file or directory {str(name)!r} here, and the repository {name.repository} "
        f"cannot be reached ({_line(error)}); {what} not in the cache {cache.parent}. Check the "
        "path, or run it once with a network and without HF_HUB_OFFLINE."
    )


def _files_below(folder: Path, before: str = "") -> Iterator[str]:
    for each in sorted(folder.iterdir()):
        if each.is_dir():
            yield from _files_below(each, f"{before}{each.name}/")
        elif each.exists():
            yield before + each.name


def _literally(file: str) -> str:
    """Returns a pattern of fnmatch that a file name alone matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in file)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
