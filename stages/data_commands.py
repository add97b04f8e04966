"""`orch data`: looks into shards, proves them, draws them, and makes the tars of others usable."""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import options, session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.artifacts import Shards
    from orchestrator.data.collection import Collection
    from orchestrator.data.verify import Decode, Verdict

FAULTS_SHOWN = 50

app = typer.Typer(
    name="data",
    help="Looks into shards: what they hold, whether they are whole, what their samples look like.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SHARDS_HELP = "A set of shards, RUN/STAGE/OUTPUT or RUN:STAGE.OUTPUT of a run, a folder of tars, or one tar."
ShardsPath = Annotated[str, typer.Argument(metavar="PATH", help=SHARDS_HELP)]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", help="Tars read at a time; by default one a core.")
]
Index = Annotated[bool, typer.Option("--index", help="Makes indexes and manifest first, for tars of others.")]
Samples = Annotated[int, typer.Option("--samples", metavar="N", help="How many.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed, other samples.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to.")]
Foreign = Annotated[
    str,
    typer.Argument(metavar="PATH_OR_URL", help="A folder of tars, a tar, a pattern, a row of tars; or a URL of such."),
]
Folder = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where indexes and manifest go; beside the tars by default."),
]


@app.command()
def inspect(path: ShardsPath, *, index: Index = False, as_json: options.Json = False) -> None:
    """Shows what a set holds: samples, sizes, members, schema, counts, licence, what was skipped, known damage.

    Reads the manifest and the indexes, never a sample. `--index` makes them first, as `orch data index` does.

    Example: orch data inspect runs/quickstart/captions/shards

    Example: orch data inspect /data/tars_of_somebody --index

    Example: orch data inspect quickstart:captions.shards --json
    """
    from orchestrator.data.summary import summarize
    from orchestrator.display import make_console
    from orchestrator.inventory import summary_lines

    if index:
        _adopt(path, None, None)
    collection = _collection(path)
    with _bar("looking at tars", "tar") as advance:
        shown = summarize(collection, advance)
    if as_json:
        typer.echo(json.dumps(shown, indent=1))
        return
    console = make_console()
    for line in summary_lines(shown):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def verify(path: ShardsPath, processes: Processes = None, *, as_json: options.Json = False) -> None:
    """Reads every byte of a set and names each fault: tar, key, reason. Ends with 1 if there is any.

    Compares sizes and sha256 with the manifest, tars with their indexes, every sample with its checksum, and all keys
    with each other; samples of our schema are decoded, image and masks.

    Example: orch data verify quickstart:captions.shards

    Example: orch data verify /data/tars_of_somebody --processes 16
    """
    from orchestrator.data.verify import verify as read_all

    collection = _collection(path)
    with _bar("reading", "tar") as advance:
        verdict = read_all(collection, _decoder(collection), processes=_processes(processes), advance=advance)
    if as_json:
        typer.echo(json.dumps(_plain_verdict(collection, verdict), indent=1))
    else:
        _tell(verdict)
    if verdict.faults:
        raise typer.Exit(1)


@app.command()
def peek(
    path: ShardsPath,
    out: Out = Path("peek.png"),
    samples: Samples = 6,
    seed: Seed = 0,
    *,
    as_json: options.Json = False,
) -> None:
    """Draws samples: images with boxes and masks, every phrase in the colour and with the number of its region.

    Example: orch data peek quickstart:grounded.shards --samples 8 --out grounded.png

    Example: orch data peek /data/tars_of_somebody --seed 3
    """
    from orchestrator.errors import InputError
    from stages.peek import as_png, sheet
    from stages.peek import peek as draw

    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise InputError(f"--out {out}: needed is a name that ends in .png, in a folder that exists")
    looks = draw(_collection(path), samples, seed)
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(as_png(sheet(looks)))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    drawn = [{"tar": look.tar, "number": look.number, "key": look.key} for look in looks]
    if as_json:
        typer.echo(json.dumps({"output": str(out), "samples": drawn}, indent=1))
        return
    for one in drawn:
        typer.echo(f"{one['tar']}  {one['number']:>6}  {one['key']}")
    typer.echo(out)


@app.command("index")
def make_index(
    where: Foreign, out: Folder = None, processes: Processes = None, *, as_json: options.Json = False
) -> None:
    """Makes the tars of others usable: an index each, and a manifest. No tar is copied or changed.

    The folder of the indexes (that of the tars, or --out, which a URL needs) is then a set of shards like ours: train
    on it, look into it. An index that is there and still its tar's is kept: what was interrupted goes on, and a set
    that grew costs its new tars only (not behind a plain web server, which does not say how old its tars are).

    Example: orch data index /data/tars_of_somebody

    Example: orch data index 's3://bucket/laion/{00000..00999}.tar' --out shards/laion
    """
    from orchestrator.inventory import adopted_lines

    shards = _adopt(where, out, processes)
    if as_json:
        typer.echo(json.dumps({"path": str(shards.path), **shards.facts()}, indent=1))
        return
    for line in adopted_lines(shards.path, shards.facts()):
        typer.echo(line)


def _adopt(where: str, out: Path | None, processes: int | None) -> "Shards":
    from orchestrator.data.adopt import adopt
    from orchestrator.data.remote import Remote
    from orchestrator.data.verify import silence

    silence()
    with _bar("indexing", "tar") as advance:
        return adopt(where, out, processes=_processes(processes), remote=Remote(), advance=advance)


def _processes(given: int | None) -> int:
    return given if given is not None else len(os.sched_getaffinity(0))


def _collection(words: str) -> "Collection":
    from orchestrator.data.collection import open_collection
    from orchestrator.data.verify import silence

    silence()
    return open_collection(session.find_shards(words))


def _decoder(collection: "Collection") -> "Decode | None":
    """Returns the proof of our schema where the manifest says that the set has it, or else its first sample."""
    from orchestrator.errors import OrchError
    from stages.decoding import prove

    if collection.facts.get("schema") is not None:
        return prove
    try:
        reader = collection.entries[0].open()
        try:
            _, members = reader.read(0)
        finally:
            reader.close()
        plain: Any = json.loads(members.get("json", b"null"))
    except (OrchError, OSError, IndexError, ValueError):
        return None  # the reading itself will say what is wrong
    return prove if isinstance(plain, dict) and "schema" in plain else None


def _plain_verdict(collection: "Collection", verdict: "Verdict") -> dict[str, Any]:
    return {
        "path": str(collection.path),
        "valid": not verdict.faults,
        "tars": verdict.tars,
        "samples": verdict.samples,
        "bytes": verdict.bytes,
        "decoded": verdict.decoded,
        "faults": [fault._asdict() for fault in verdict.faults],
    }


def _tell(verdict: "Verdict") -> None:
    from orchestrator.inventory import size_in_words, tars_in_words

    for fault in verdict.faults[:FAULTS_SHOWN]:
        typer.echo("  ".join(part for part in fault if part))
    if (more := len(verdict.faults) - FAULTS_SHOWN) > 0:
        typer.echo(f"and {more} more; --json lists all")
    how = "read and decoded" if verdict.decoded else "read"
    size = f"{verdict.samples:,} samples in {tars_in_words(verdict.tars)}, {size_in_words(verdict.bytes)}, {how}"
    typer.echo(f"{size}: {f'{len(verdict.faults)} faults' if verdict.faults else 'all as written'}")


@contextmanager
def _bar(words: str, unit: str) -> "Iterator[Any]":
    """Shows how far it is, on stderr, where somebody is looking."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orchestrator.display import make_console

    console = make_console(stderr=True)
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}s"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
