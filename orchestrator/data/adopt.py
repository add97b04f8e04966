"""Makes tars that somebody else wrote a set of shards: an index each, and a manifest that says where they lie.

Nothing is copied and no tar is touched. The indexes hold a checksum of every member, so their digest stands for the
content of the tars; which is why a manifest of adopted tars lists the indexes as its files, and the tars in its facts.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from orchestrator.artifacts import MANIFEST, Shards, file_sha256
from orchestrator.data.grouping import Damage
from orchestrator.data.index import SUFFIX, TarIndex, index_of
from orchestrator.data.places import Place, check_url, is_url
from orchestrator.data.remote import Remote, driver, open_place
from orchestrator.errors import DamagedArtifact, InputError, SurroundingsError

Advance = Callable[[int, int], None]  # tars done, tars in all

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_SHOWN_DAMAGE = 1000  # in the manifest; the indexes hold all of it


def adopt(where: str, out: Path | None, *, processes: int, remote: Remote, advance: Advance) -> Shards:
    """Indexes the tars at a path or URL, several at a time, and returns them as a set of shards.

    `where` is a folder, a tar, a pattern with `*`, or a row of tars like `shard-{000000..000099}.tar`. Without `out`
    indexes and manifest come to lie beside the tars, which must all be in one folder of this machine. An index that is
    there already and is the tar's as it is now is kept, so what was interrupted goes on.
    """
    if processes < 1:
        raise InputError(f"processes must be 1 or more, not {processes}")
    tars = find_tars(where)
    folder = out or _folder_of(tars, where)
    names = _index_names(tars, beside=out is None)
    if (folder / MANIFEST).exists() and "tars" not in Shards(folder).facts():
        raise InputError(f"{folder} holds an artifact of ours already: its tars need no index")
    jobs = [_Job(tar, folder / name, remote) for tar, name in zip(tars, names, strict=True)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # until the end the set is not complete
        found = []
        for one in _run(jobs, processes):
            found.append(one)
            advance(len(found), len(jobs))
        facts = _facts(folder, tars, names, found)
        sha256 = {name: one.sha256 for name, one in zip(names, found, strict=True)}
        Shards(folder).commit("adopted", facts=facts, sha256=sha256, only=names)
    except OSError as error:
        hint = "" if out else "; give another folder for the indexes"
        raise SurroundingsError(f"cannot write indexes into {folder}: {error.strerror or error}{hint}") from error
    return Shards(folder)


def find_tars(where: str) -> list[str]:
    """Lists the tars at a path or URL in the order of their names: absolute paths, or URLs."""
    from braceexpand import braceexpand

    tars: list[str] = []
    for place in braceexpand(where) if "{" in where else [where]:
        tars += _in_url(place) if is_url(place) else _in_path(Path(place))
    if packed := [tar for tar in tars if tar.lower().endswith(_COMPRESSED)]:
        advice = "a sample inside a compressed tar cannot be read alone; unpack it first, for example with gunzip"
        raise InputError(f"{packed[0]} is compressed: {advice}")
    if not tars:
        raise InputError(f"{where}: there is no tar; given may be a folder, a tar, a pattern or a row (0{{0..9}}.tar)")
    if len(set(tars)) < len(tars):
        raise InputError(f"{where}: names a tar twice")
    return tars


class _Job(NamedTuple):
    tar: str
    beside: Path  # where its index will lie
    remote: Remote


class _Done(NamedTuple):
    samples: int
    tar_bytes: int
    sha256: str  # of the index
    damage: tuple[Damage, ...]


def _in_url(url: str) -> list[str]:
    check_url(url)
    if url.endswith((".tar", *_COMPRESSED)) and "*" not in url:
        return [url]
    system, path = driver(url)
    try:
        found = system.glob(path) if "*" in url else system.ls(path, detail=False)
    except OSError as error:
        raise InputError(f"{url} cannot be listed: {error}") from error
    return sorted(system.unstrip_protocol(name) for name in found if name.endswith((".tar", *_COMPRESSED)))


def _in_path(path: Path) -> list[str]:
    if "*" in path.name:
        found = list(path.parent.glob(path.name))
    elif path.is_dir():
        found = [each for each in path.iterdir() if each.name.endswith((".tar", *_COMPRESSED))]
    elif path.is_file():
        found = [path]
    else:
        raise InputError(f"{path} does not exist")
    return sorted(str(each.absolute()) for each in found if not each.name.startswith("."))


def _folder_of(tars: Sequence[str], where: str) -> Path:
    folders = {Path(tar).parent for tar in tars}
    if any(is_url(tar) for tar in tars) or len(folders) > 1:
        raise InputError(f"{where}: the tars are not in one folder of this machine; name a folder for their indexes")
    return folders.pop()


def _index_names(tars: Sequence[str], *, beside: bool) -> list[str]:
    stems = [tar.rpartition("/")[2].removesuffix(".tar") for tar in tars]
    if beside:
        return [stem + SUFFIX for stem in stems]
    return [f"{number:06d}-{stem}{SUFFIX}" for number, stem in enumerate(stems)]  # stems may repeat across folders


def _run(jobs: list[_Job], processes: int) -> Iterator[_Done]:
    if processes == 1 or len(jobs) == 1:
        yield from map(_index, jobs)
        return
    # spawned, not forked: whoever calls may have threads, a progress bar's or a driver's
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_index, jobs)


def _index(job: _Job) -> _Done:
    index = _kept(job)
    if index is None:
        try:
            place = open_place(job.tar, job.remote)
        except FileNotFoundError as error:
            raise InputError(f"{job.tar} does not exist") from error
        except OSError as error:
            raise SurroundingsError(f"{job.tar} cannot be read: {error.strerror or error}") from error
        try:
            index = index_of(place, job.tar)
        except OSError as error:
            raise SurroundingsError(f"{job.tar} cannot be read: {error.strerror or error}") from error
        finally:
            place.close()
        index.save(job.beside)
    return _Done(len(index), index.tar_bytes, file_sha256(job.beside), index.damage)


def _kept(job: _Job) -> TarIndex | None:
    """Returns the index that lies there already, if it is this tar's as it is now.

    It must be newer than the tar, which a plain web server does not tell, say the same size, and know the tar's first
    and last sample: a tar that was copied over another may say that it is as old as it was elsewhere.
    """
    try:
        index, place = TarIndex.load(job.beside), open_place(job.tar, job.remote)
    except (OSError, DamagedArtifact):
        return None
    try:
        written = place.modified()
        newer = written is not None and job.beside.stat().st_mtime > written
        return index if newer and place.size() == index.tar_bytes and _is_of(index, place) else None
    except OSError:
        return None
    finally:
        place.close()


def _is_of(index: TarIndex, place: Place) -> bool:
    ends = {0, len(index) - 1} if len(index) else ()
    members = [member for number in ends for member in index.members(number)]
    return all(xxh3_64_intdigest(place.read(member.offset, member.size)) == member.check for member in members)


def _facts(folder: Path, tars: Sequence[str], names: Sequence[str], found: Sequence[_Done]) -> dict[str, Any]:
    inside = f"{folder.absolute()}/"
    damage = [(tar, *loss) for tar, one in zip(tars, found, strict=True) for loss in one.damage]
    return {
        "samples": sum(one.samples for one in found),
        "shards": len(tars),
        "bytes": sum(one.tar_bytes for one in found),
        "samples_per_tar": [one.samples for one in found],
        "tars": [tar.removeprefix(inside) for tar in tars],  # those beside the indexes may move together with them
        "indexes": list(names),
        "tar_bytes": [one.tar_bytes for one in found],
        "losses": len(damage),
        "damage": [{"tar": tar, "key": key, "reason": reason} for tar, key, reason in damage[:_SHOWN_DAMAGE]],
    }
