"""`retain doctor`: what this machine can do, what is there, and what to do about what is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from retain.cli.command import command
from retain.cli.errors import REFUSED, one_line

if TYPE_CHECKING:
    from retain.cli.session import Session

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
MEMORY_NEEDED = 4e9  # bytes: the embedded model in float32 while it learns
DISK_NEEDED = 2e9
PACKAGES = ("retain", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "typer", "rich")
_VECTOR = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16", "i8mm")


@dataclass(frozen=True)
class Check:
    """One line of the report: status is ok, warn or fail; `advice` says what to do."""

    name: str
    value: str
    status: str = "ok"
    advice: str = ""


@command(("retain doctor", "check this machine and the workspace"), ("retain doctor --json", "for bug reports"))
def doctor(here: Session) -> None:
    """Check the machine, the model and the workspace.

    Says what to do about what is missing.
    Exit code 3: something does not work.
    """
    with here.waiting("looking around"):
        checks = [check for part in (configuration, machine, model, workspace, versions) for check in _guarded(part, here)]
    failed = [check for check in checks if check.status == "fail"]
    if here.json:
        here.emit({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark, style = MARKS[check.status]
            line = Text.assemble((f"{mark} ", style), (f"{check.name:<{width}}  ", "dim"), check.value)
            if check.advice:
                line.append(f"\n{'':<{width + 4}}{check.advice}", style=style)
            here.out.print(line, soft_wrap=True)
        warned = sum(check.status == "warn" for check in checks)
        verdict = "everything works" if not failed else f"{len(failed)} of {len(checks)} checks failed"
        here.out.print(f"\n{verdict}{f', {warned} to look at' if warned else ''}", style="bold")
    if failed:
        raise typer.Exit(REFUSED)


def configuration(here: Session) -> Iterator[Check]:
    """The files, and where they lead."""
    from retain.cli.configuration import known_names
    from retain.cli.output import home
    from retain.config import user_file, workspace_file

    known_names(here.config)
    files = [home(path) for path in (user_file(), workspace_file(here.config.workspace)) if path.is_file()]
    yield Check("configuration", ", ".join(files) or "defaults")


def machine(here: Session) -> Iterator[Check]:
    """Processor, memory, accelerator, and the precision that follows."""
    import torch

    from retain.cli.output import data_size
    from retain.lm.devices import choose_device, choose_precision
    from retain.lm.devices import machine as look

    found, config = look(), here.config.model
    yield Check("processor", found.cpu)
    threads = config.threads or torch.get_num_threads()
    many = threads > found.cores
    yield Check(
        "cores",
        f"{found.cores}, {threads} in use",
        "warn" if many else "ok",
        f"more threads than cores slow everything down: retain config set model.threads {found.cores}" if many else "",
    )
    vector = [flag for flag in _VECTOR if flag in found.flags]
    speed = ("ok", "") if vector else ("warn", "learning will be slow")
    yield Check("vector instructions", ", ".join(vector) or "none known", *speed)
    device = choose_device(config, found)
    precision = choose_precision(device, config.precision, found)
    chosen = str(precision).removeprefix("torch.")
    slow = device.type == "cpu" and chosen != "float32" and not (found.cpu_bf16 and chosen == "bfloat16")
    yield Check("bfloat16", "yes, in hardware" if found.cpu_bf16 else "no: emulated by this processor, 5-6 times slower than float32")
    yield Check(
        "precision",
        f"{chosen} on {device.type}" + ("" if config.precision == "auto" else f" (model.precision is {config.precision})"),
        "warn" if slow else "ok",
        "this processor is several times faster in float32: retain config set model.precision auto" if slow else "",
    )
    yield Check("accelerator", found.cuda or ("Apple MPS" if found.mps else "none: the processor does the work"))
    available = available_memory()
    total = data_size(found.memory_bytes) if found.memory_bytes else "unknown"
    short = available is not None and available < MEMORY_NEEDED
    free = f", {data_size(available)} available" if available is not None else ""
    yield Check("memory", total + free, "warn" if short else "ok", "learning may run out of memory: close other programs" if short else "")


def model(here: Session) -> Iterator[Check]:
    """The configured base model's files."""
    from retain.cli.model import size_of
    from retain.cli.output import data_size, home
    from retain.lm.embedded import NAME, embedded_path
    from retain.lm.loading import names_a_path

    name, another = here.config.model.name, "retain config set model.name NAME takes another; retain model list shows what is here"
    if name.lower() == NAME and not Path(name).exists():
        place = embedded_path(here.config.model.cache_dir)
        if (place / "identity.json").exists():
            yield Check("model", f"{name}, {data_size(size_of(place))} in {home(place)}")
        else:
            yield Check("model", f"{name}, not fetched yet", "warn", "retain model pull (93 MB, once); otherwise the first use fetches it")
    elif (place := Path(name).expanduser()).is_dir() and not (place / "config.json").is_file():
        yield Check("model", f"{name}: there is no model in this folder, config.json is missing", "fail", another)
    elif place.exists():
        yield Check("model", f"{name} (local)")
    elif names_a_path(name):
        yield Check("model", f"{name}: there is no such folder or file", "fail", another)
    else:
        fetch = f"retain model pull {name} looks for it and fetches it; otherwise the first use does"
        yield Check("model", f"{name}, a name of the hub, which was not asked for it", "warn", fetch)


def workspace(here: Session) -> Iterator[Check]:
    """What was learned, what waits, and whether there is room."""
    from retain.cli.output import count, data_size, home
    from retain.cli.session import is_workspace
    from retain.workspace.base import base_of

    place = here.config.workspace
    parent = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    room = free > DISK_NEEDED
    if not is_workspace(place):
        yield Check("workspace", f"{home(place)}, nothing learned yet")
    else:
        lm = here.open()
        documents = lm.documents()
        known = sum(record.status == "committed" for record in documents)
        waiting = sum(record.status in ("pending", "learning") for record in documents)
        refused = sum(record.status in ("rejected", "failed") for record in documents)
        yield Check("workspace", f"{home(place)}: {count(known, 'document')} learned, {count(len(lm.log()), 'update')}")
        yield from _base(here, base_of(lm.ledger))
        if waiting:
            yield Check("pending", count(waiting, "document"), "warn", "retain learn --pending learns what is pending")
        if refused:
            yield Check("not learned", count(refused, "document"), "warn", "retain documents says why")
    advice = "" if room else "free some space: an update is refused when its files cannot be written"
    yield Check("disk", f"{data_size(free)} free", "ok" if room else "warn", advice)


def _base(here: Session, base: dict[str, Any]) -> Iterator[Check]:
    """The base that what was learned belongs to."""
    from retain.cli.output import home
    from retain.workspace.base import file_of, other_than

    if not base:
        return
    at, configured = base.get("place") or "", here.config.model.name
    told = f"{base['name']} ({base['fingerprint'][:12]}){f' in {home(at)}' if at else ''}"
    if at and not Path(at).exists() and not file_of(configured):
        yield Check("base", f"{told}: not there any more", "fail", "retain config set model.name PATH says where it is now")
    elif other_than(base, here.config):
        unused = f"model.name is {configured}, which is not used here: a workspace keeps the base of what it learned"
        yield Check("base", told, "warn", unused)
    else:
        yield Check("base", told)


def versions(here: Session) -> Iterator[Check]:
    """Python and the libraries."""
    import platform

    yield Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Check("libraries", ", ".join(found))
    for name in missing:
        if name != "retain":  # run from a source tree
            yield Check(name, "not installed", "fail", f"pip install {name}")


def available_memory() -> int | None:
    """Bytes that a program can still get, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _guarded(part: Callable[[Session], Iterator[Check]], here: Session) -> Iterator[Check]:
    """The checks of a part; an error is a failed check, and the other parts go on."""
    try:
        yield from part(here)
    except Exception as error:
        yield Check(part.__name__, one_line(error), "fail", "mend this first" if part is configuration else "")
