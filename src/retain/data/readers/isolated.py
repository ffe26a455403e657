"""Files from strangers are read in a process of their own, with bounds on its memory and time: a parser that a file breaks or blows up
takes nothing else with it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from retain.data.document import Document
from retain.data.errors import DataError, Note
from retain.data.readers.paths import read_path
from retain.data.readers.plain import Tell

MEMORY = 1 << 30
SECONDS = 60.0


def read_isolated(
    body: bytes, name: str, *, domain: str = "general", importance: float = 0.5, on_note: Tell | None = None,
    memory: int = MEMORY, seconds: float = SECONDS,
) -> list[Document]:  # fmt: skip
    """The documents in the bytes of a file; ``name`` tells how it is read, and is their source.

    ``memory``: bytes that the reading process may have; ``seconds``: how long it may take. Raises DataError, also when it needs more or
    when the parser crashes.
    """
    with tempfile.TemporaryDirectory(prefix="retain-read-") as folder:
        file = Path(folder) / f"file{Path(name).suffix}"
        file.write_bytes(body)
        limits = {"memory": memory, "seconds": seconds}
        asked = json.dumps({"file": str(file), "name": name, "domain": domain, "importance": importance, **limits})
        environment = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT")}
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__], input=asked.encode(), capture_output=True, timeout=seconds, env=environment, cwd=folder,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataError(f"reading it takes longer than {seconds:g} s", path=name, fix="split the file") from None
    try:
        answer = json.loads(done.stdout.decode())
    except ValueError:
        problem = "needs more memory than a file may" if b"MemoryError" in done.stderr or done.returncode < 0 else "broke its reader"
        raise DataError(f"it {problem}", path=name, fix="split the file, or save it in another format") from None
    if "error" in answer:
        error = answer["error"]
        raise DataError(error["what"], path=name, line=error["line"], field=error["field"], fix=error["fix"])
    for where, what in answer["notes"]:
        if on_note:
            on_note(Note(where, what))
    return [Document.from_dict(document) for document in answer["documents"]]


def _read() -> None:
    """The process: reads what is asked on its standard input, answers on its standard output."""
    asked = json.load(sys.stdin)
    limit = asked["memory"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(asked["seconds"]) + 1,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes nothing
    notes: list[Note] = []
    name, file = asked["name"], asked["file"]
    try:
        found = list(read_path(file, domain=asked["domain"], importance=asked["importance"], on_note=notes.append))
    except DataError as error:
        answer: dict[str, object] = {"error": {"what": error.what, "line": error.line, "field": error.field, "fix": error.fix}}
    else:
        documents = [
            {
                **document.to_dict(),
                "source": document.source.replace(file, name),
                "title": Path(name).stem if document.title == Path(file).stem else document.title.replace(Path(file).name, Path(name).name),
            }
            for document in found
        ]
        answer = {"documents": documents, "notes": [(note.where.replace(file, name), note.what) for note in notes]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _read()
