"""`python -m benchmarks fetch NAME...`, the only thing here that downloads.

An asset is put together in a folder beside its place, and moved there when it is whole. A fetch that was cut off goes
on where it stopped.
"""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
import sys
import urllib.error
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # what the hub's HTTP client raises
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from benchmarks.specs.files import write_text
from benchmarks.supply.assets import LOCK, PICKLES, Asset, Part, asset, digests, folder, locate
from dipgo.errors import DipgoError, first_line

NEWEST = "main"
log = logging.getLogger(__name__)


class Unavailable(Exception):
    """A place does not have a part. Another place may."""


def fetch(names: Sequence[str]) -> None:
    """Download what is missing of some assets, each whole or not at all.

    Raises a `DipgoError` of one line without a network, for an unknown revision, a repository that is gated or gone, a
    file that is not the published one, and a full disk.
    """
    for client in ("httpx", "httpx2"):  # the hub's, which tells of every request
        logging.getLogger(client).setLevel(logging.WARNING)
    for entry in [asset(name) for name in names]:
        reason = _reason(entry.name)
        if reason is None:
            log.info("%s is there", entry.name)
            continue
        if entry.path.is_symlink():
            raise DipgoError(f"{reason}; {entry.path} is a link to an own copy: mend that, or remove the link")
        if entry.path.exists():
            log.info("%s", reason)
        with _plain_errors(entry), _alone(entry) as work:
            _fetch(entry, work)
        log.info("%s is fetched; licence: %s. %s", entry.name, entry.license, entry.note)


def _reason(name: str) -> str | None:
    """Return why an asset has to be fetched; None where it is there."""
    try:
        locate(name)
    except DipgoError as error:
        return str(error)
    return None


def _fetch(entry: Asset, work: Path) -> None:
    """Put an asset together in the folder `work`, and move it to its place."""
    there = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    needed = sum(part.bytes * (2 if _remade(part) else 1) for part in entry.parts) - there
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DipgoError(f"{entry.name}: needs {needed / 1e9:.1f} GB in {folder()}, {free / 1e9:.1f} GB are free")
    origins = [_fetch_part(entry, part, work) for part in entry.parts]
    wanted = {file for part in entry.parts for pattern in part.patterns for file in work.glob(pattern)}
    for file in sorted(work.rglob("*"), reverse=True):  # what a folder holds before the folder
        if file.is_dir() and not file.is_symlink():
            if not any(file.iterdir()):
                file.rmdir()
        elif file not in wanted:
            file.unlink()
    files = digests(work, sorted(file.relative_to(work).as_posix() for file in wanted), entry.name)
    sizes = {name: {"sha256": digest, "bytes": (work / name).stat().st_size} for name, digest in files.items()}
    write_text(work / LOCK, json.dumps({"asset": entry.name, "origins": origins, "files": sizes}, indent=1) + "\n")
    broken = entry.path.with_name(f".{entry.name}.broken")
    shutil.rmtree(broken, ignore_errors=True)
    if entry.path.exists():
        entry.path.rename(broken)
    work.rename(entry.path)
    shutil.rmtree(broken, ignore_errors=True)


def _remade(part: Part) -> bool:
    """Tell whether the files of a part are archives or pickles, which lie beside what is made of them for a while."""
    return bool(part.unpack) or any(part.stored(name) != str(PurePosixPath(part.into, name)) for name in part.files)


def _fetch_part(entry: Asset, part: Part, work: Path) -> dict[str, str]:
    """Bring the files of a part into their final form, from the first place that has them. Return that place."""
    first = {"repo": part.repo, "url": part.url, "revision": part.revision}
    reasons = []
    for place in [{key: value for key, value in first.items() if value}, *part.fallbacks]:
        try:
            origin = (_from_url if "url" in place else _from_hub)(entry, part, place, work)
            break
        except Unavailable as reason:
            reasons.append(str(reason))
            log.info("%s: %s", entry.name, reason)
    else:
        raise DipgoError(f"{entry.name}: {'; '.join(reasons)}")
    for file in sorted(path for pattern in part.files for path in (work / part.into).glob(pattern)):
        if part.unpack:
            _unpack(file, part.unpack, work / part.into)
        elif _remade(part) and file.suffix in PICKLES:
            _convert(file)
    return origin


def _from_hub(entry: Asset, part: Part, place: Mapping[str, str], work: Path) -> dict[str, str]:
    repo, asked, kind = place["repo"], place.get("revision", NEWEST), "dataset" if part.dataset else "model"
    hub, into = HfApi(), work / part.into
    try:
        info = hub.repo_info(repo, repo_type=kind, revision=asked, files_metadata=True)
        published = {file.rfilename: file for file in info.siblings if _any(file.rfilename, part.files)}
        if absent := [pattern for pattern in part.files if not any(fnmatch(name, pattern) for name in published)]:
            raise Unavailable(f"{repo} at {asked} holds no {absent[0]}")
        log.info("%s: %s at %s", entry.name, repo, info.sha)
        hub.snapshot_download(repo, repo_type=kind, revision=info.sha, local_dir=into, allow_patterns=part.files)
    except GatedRepoError:
        page = f"huggingface.co/{'datasets/' if part.dataset else ''}{repo}"
        raise Unavailable(f"{repo} is gated: accept its licence on {page}, `hf auth login`, fetch again") from None
    except RevisionNotFoundError:
        raise Unavailable(f"{repo} has no revision {asked}") from None
    except RepositoryNotFoundError:
        raise Unavailable(f"{repo} is withdrawn, moved or private") from None
    for name, file in published.items():
        _check(entry, work, into / name, part.sha256.get(name) or (file.lfs.sha256 if file.lfs else ""), file.size)
    return {"repo": repo, "revision": info.sha}


def _from_url(entry: Asset, part: Part, place: Mapping[str, str], work: Path) -> dict[str, str]:
    from torch.hub import download_url_to_file

    url, (name,), into = place["url"], part.files, work / part.into
    into.mkdir(parents=True, exist_ok=True)
    if not (into / name).is_file():
        log.info("%s: %s", entry.name, url)
        try:
            download_url_to_file(url, str(into / name), progress=sys.stderr.isatty())
        except urllib.error.URLError as error:
            raise Unavailable(f"{url} cannot be reached ({error.reason})") from None
    _check(entry, work, into / name, part.sha256.get(name, ""))
    return {"url": url}


def _check(entry: Asset, work: Path, file: Path, sha256: str, size: int | None = None) -> None:
    """Raise where a file is not the published one. It is removed, so that the next fetch takes it again."""
    right = file.is_file() and size in (None, file.stat().st_size)
    if right and sha256:
        name = file.relative_to(work).as_posix()
        right = digests(work, [name], entry.name)[name] == sha256
    if not right:
        file.unlink(missing_ok=True)
        raise DipgoError(f"{entry.name}: {file.name} did not arrive as published; fetch it again")


def _unpack(archive: Path, members: Sequence[str], into: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            names = [name for name in content.namelist() if _any(name, members)]
            if absent := [pattern for pattern in members if not any(fnmatch(name, pattern) for name in names)]:
                raise DipgoError(f"{archive.name} holds no {absent[0]}")
            content.extractall(into, names)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DipgoError(f"{archive.name} is no whole archive ({error}); fetch it again") from error
    archive.unlink()


def _convert(file: Path) -> None:
    """Convert pickled weights to safetensors of the same name. A pickle of more than tensors is refused and not run."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        state = state.get("state_dict", state)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        reason = first_line(error)
        raise DipgoError(f"{file.name} is not a pickle of tensors alone; not converted ({reason})") from error
    part = file.with_name(f"{file.name}.part")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
    except SafetensorError as error:
        raise DipgoError(f"{file.name} is not converted: {error}") from error
    part.rename(file.with_suffix(".safetensors"))
    file.unlink()


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@contextmanager
def _alone(entry: Asset) -> Iterator[Path]:
    """Let one process at a time use the folder in which an asset is put together."""
    work = entry.path.with_name(f".{entry.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    try:
        claim = FileLock(work.with_suffix(".lock")).acquire(blocking=False)
    except Timeout:
        raise DipgoError(f"{entry.name} is being fetched by another process; wait for it") from None
    with claim:
        yield work


@contextmanager
def _plain_errors(entry: Asset) -> Iterator[None]:
    """Turn what a network or a disk raises into one line."""
    again = f"`python -m benchmarks fetch {entry.name}` goes on where this stopped"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise DipgoError(f"{entry.name}: HF_HUB_OFFLINE is set; unset it to fetch") from error
    except HfHubHTTPError as error:
        raise DipgoError(f"{entry.name}: the hub answers {first_line(error)}; {again}") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise DipgoError(f"{entry.name}: no network ({first_line(error)}); {again}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"no room left in {folder()}" if full else str(error)
        raise DipgoError(f"{entry.name}: {reason}; {again}") from error
