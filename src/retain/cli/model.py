"""`retain model`: the base model, which is never written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from retain.cli.command import command

if TYPE_CHECKING:
    from retain.cli.session import Session


@command(
    ("retain model pull", "the configured model"),
    ("retain model pull Qwen/Qwen2.5-0.5B-Instruct", "a model of the hub"),
)
def pull(
    here: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The embedded model or a hub name (default: model.name).")] = None,
) -> None:
    """Fetch a model, so that later commands need no network."""
    from retain.lm.embedded import NAME, cache_root, embedded_model_dir

    wanted, cache = name or here.config.model.name, here.config.model.cache_dir or cache_root()
    with here.waiting(f"fetching {wanted}"):
        if wanted == NAME:
            place = embedded_model_dir(cache, here.note)
        else:
            from retain.lm.loading import locate

            place = locate(wanted, cache).directory
    if here.json:
        here.emit({"model": wanted, "path": str(place)})
    else:
        here.out.print(Text.assemble(("✓ ", "green"), f"{wanted} is in {place}"), soft_wrap=True)


@command(("retain model info", "the model of the workspace"), ("retain model info --model gpt2/", "another one"))
def info(
    here: Session,
    model: Annotated[str | None, typer.Option(help="Base model: name, folder or GGUF file (default: model.name).", metavar="NAME")] = None,
) -> None:
    """The base model of the workspace.

    Size, layers, context, device and precision, and the fingerprint that proves that it is unchanged.
    """
    from retain.cli.output import amount, data_size, facts, words
    from retain.cli.session import is_workspace

    settings = here.config.model
    with here.waiting("loading the model"):
        if model is None and is_workspace(here.config.workspace):
            found = here.open().model_info()
        else:
            from retain.lm.loading import load_model, model_info

            name, places = model or settings.name, {"device": settings.device, "precision": settings.precision}
            found = model_info(load_model(name, **places, cache_dir=settings.cache_dir, threads=settings.threads))
    if here.json:
        here.emit(found)
        return
    units = {"parameters": amount, "bytes": data_size, "vocabulary": amount, "context": amount}
    here.out.print(facts((key.replace("_", " "), Text(units.get(key, words)(value))) for key, value in found.items()))


@command(("retain model list", "what is on this machine"))
def list_models(here: Session) -> None:
    """The models on this machine."""
    from retain.cli.output import data_size, home, table

    found = [*_embedded(here), *_hub()]
    if here.json:
        here.emit(found)
        return
    rows = table("model", "kind", "state", "size", "where", right=("size",))
    for item in found:
        state = Text("ready", style="green") if item["ready"] else Text("not fetched: retain model pull", style="yellow")
        name = Text(item["name"], style="bold" if item["name"] == here.config.model.name else "")
        rows.add_row(name, item["kind"], state, data_size(item["bytes"]), Text(home(item["path"]), style="dim"))
    here.out.print(rows)
    here.note("use one with --model NAME, or for good with retain config set model.name NAME; directories and GGUF files work too")


def _embedded(here: Session) -> Iterator[dict[str, Any]]:
    """The embedded model, and other models beside it in retain's own cache."""
    from retain.lm.embedded import NAME, embedded_path

    own = embedded_path(here.config.model.cache_dir)
    yield {"name": NAME, "kind": "embedded", "ready": (own / "identity.json").exists(), "bytes": size_of(own), "path": str(own)}
    for folder in sorted(own.parent.glob("*/config.json")):
        if folder.parent != own:
            path = folder.parent
            yield {"name": str(path), "kind": "directory", "ready": True, "bytes": size_of(path), "path": str(path)}


def _hub() -> Iterator[dict[str, Any]]:
    """The models in the hub's cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return
    for item in sorted(repositories, key=lambda repository: repository.repo_id):
        if item.repo_type == "model":
            yield {"name": item.repo_id, "kind": "hub", "ready": True, "bytes": item.size_on_disk, "path": str(item.repo_path)}


def size_of(folder: Path) -> int | None:
    """Bytes of all files in a directory; None where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None
