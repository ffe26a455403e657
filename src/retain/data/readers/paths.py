"""Files and folders: which reader a file needs, what is left out of a folder and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from retain.data.document import Document, check_metadata
from retain.data.errors import DataError, Note, did_you_mean
from retain.data.readers import records, rich
from retain.data.readers.plain import Tell, read_text, title_of


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


RICH = {".html": rich.read_html, ".htm": rich.read_html, ".xhtml": rich.read_html, ".pdf": rich.read_pdf, ".docx": rich.read_docx}
RECORDS = _names(".jsonl .ndjson .json")
TEXT = _names(".txt .text .md .markdown .mdx .rst .adoc .org .tex .log .srt .vtt")
CODE = _names(
    """.py .pyi .js .mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hh .hpp .cs .m .mm .go .rs .rb .php .pl
    .pm .lua .r .jl .swift .dart .ex .exs .erl .hs .ml .mli .clj .lisp .el .scm .f90 .f .pas .sh .bash .zsh .fish .ps1 .bat .sql .yaml
    .yml .toml .ini .cfg .conf .proto .graphql .tf .cmake .gradle .css .scss .less .vue .svelte .xml .mk .dockerfile .nix .zig .sol"""
)
_TEXT_NAMES = _names("readme license licence copying authors notice changelog contributing")
_CODE_NAMES = _names("makefile dockerfile jenkinsfile rakefile gemfile justfile")
_TOOL_FOLDERS = _names("__pycache__ node_modules CVS _darcs venv site-packages")
_log = logging.getLogger("retain.data")


def read_path(
    path: str | os.PathLike[str], *, domain: str = "general", importance: float = 0.5, on_note: Tell | None = None
) -> Iterator[Document]:
    """The documents of a file, or of all files below a folder in the order of their names.

    In a folder, hidden files, folders of version control and of tools, binary files and files of unknown kinds are left out, and files
    with mistakes too; each is told.

    Args:
        path: a file (text, Markdown, HTML, PDF, Word, JSON lines, JSON, source code) or a folder.
        domain: for documents that do not name their own.
        importance: from 0 to 1, for documents that do not give their own.
        on_note: is called with each note (what was left out and why, repaired encodings). Default: a log warning.

    Raises:
        DataError: at once, for a path that does not exist or wrong metadata; while reading, for a file that is empty, damaged or of an
            unknown kind; for a folder without a single readable file.
    """
    check_metadata(domain, importance)
    place = Path(path).expanduser()
    tell = on_note or (lambda note: _log.warning("%s", note))
    if not place.exists():
        raise DataError("does not exist", path=place, fix=_near_path(place) or "check the path")
    if place.is_dir():
        return _read_folder(place, tell, domain, importance)
    return iter(_read_file(place, tell, domain, importance))


def _near_path(path: Path) -> str:
    """ "did you mean ...?" from the names beside a missing path."""
    if path.is_symlink():
        return "it is a link to something that does not exist"
    folder = path.parent
    if not folder.is_dir():
        return f"the folder '{folder}' does not exist either" if str(folder) else ""
    try:
        return did_you_mean(path.name, [entry.name for entry in folder.iterdir()])
    except OSError:
        return ""


def _kind(path: Path) -> str | None:
    """ "text", "code", "rich" or "records"; None for unknown kinds."""
    suffix = path.suffix.lower()
    if not suffix or path.name.startswith("."):
        name = path.name.lower()
        return "text" if name in _TEXT_NAMES else "code" if name in _CODE_NAMES else None
    kinds = {"text": TEXT, "code": CODE, "rich": RICH, "records": RECORDS}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), None)


def _read_file(path: Path, tell: Tell, domain: str, importance: float) -> list[Document]:
    if not path.is_file():
        raise DataError("neither a file nor a folder", path=path)
    kind, suffix = _kind(path), path.suffix.lower()
    if kind == "rich":
        title, text = RICH[suffix](path, tell)
        return [Document.from_text(text, title, str(path), domain=domain, importance=importance)]
    if kind == "records":
        read = records.read_json if suffix == ".json" else records.read_jsonl
        found = read(path, tell, domain=domain, importance=importance)
        if found is not None:
            return found
        kind = "code"  # JSON that is no records: learned as it is written
    if kind is None:
        tell(Note(str(path), f"unknown kind {suffix or path.name!r}: read as text"))
    text = read_text(path, tell)
    title = path.name if kind == "code" else title_of(text, path)
    return [Document.from_text(text, title, str(path), domain=domain, importance=importance, kind="code" if kind == "code" else "text")]


def _read_folder(folder: Path, tell: Tell, domain: str, importance: float) -> Iterator[Document]:
    count = 0
    for path in _files(folder, tell):
        try:
            found = _read_file(path, tell, domain, importance)
        except DataError as error:
            tell(Note(str(path), "left out: " + str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ")))
            continue
        count += len(found)
        yield from found
    if not count:
        raise DataError(
            "no readable file in this folder", path=folder, fix="it reads text, Markdown, HTML, PDF, Word, JSON lines and source code"
        )


def _files(folder: Path, tell: Tell) -> Iterator[Path]:
    """Readable files below a folder, sorted, each once even where links lead to it again."""
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        tell(Note(str(error.filename), f"left out: cannot be read ({error.strerror})"))

    for root, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        place = Path(root)
        if _again(place, seen):
            tell(Note(root, "left out: a link back to a folder that was read"))
            folders[:] = []
            continue
        for name in [name for name in folders if name.startswith(".") or name in _TOOL_FOLDERS]:
            tell(Note(str(place / name), "left out: hidden" if name.startswith(".") else "left out: a folder of tools"))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _TOOL_FOLDERS)
        for name in sorted(names):
            path = place / name
            reason = _reason_to_skip(path, seen)
            if reason:
                tell(Note(str(path), f"left out: {reason}"))
            else:
                yield path


def _again(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether this very file or folder was met before; remembers it."""
    status = path.stat()
    identity = (status.st_dev, status.st_ino)
    known = identity in seen
    seen.add(identity)
    return known


def _reason_to_skip(path: Path, seen: set[tuple[int, int]]) -> str:
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "a link that leads nowhere" if path.is_symlink() else "not a regular file"
    if _kind(path) is None:
        return f"unknown kind '{path.suffix or path.name}'"
    return "the same file was read already" if _again(path, seen) else ""
