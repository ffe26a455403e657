"""The corpus: files and folders become clean documents, some of them held out, and what is left out is told."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retain.data import DataError, Document, Dropped, NearDuplicateIndex, Note, clean_documents, read_path
from retain.data.chat import Tokenizer, affixes, tokenise
from retain.data.document import Message
from retain.data.examples import dialogue_example
from retain.pretraining.config import CorpusConfig
from retain.pretraining.errors import PretrainingError


def documents(config: CorpusConfig, tell: Callable[[Dropped | Note], None]) -> Iterator[Document]:
    """The documents of the corpus, one after another, repaired and filtered as configured. ``tell`` gets what was left out or repaired,
    with the reason. Raises DataError for a path that does not exist or cannot be read, PretrainingError when none is named."""
    if not config.paths:
        raise PretrainingError("corpus.paths: names no file and no folder: what is to be learned from?")
    index = NearDuplicateIndex()
    for path in config.paths:
        for document in read_path(path, on_note=tell):
            for part in _parts(document, config.separator):
                if not config.clean:
                    yield part
                    continue
                report = clean_documents([part], known=index)
                for dropped in report.dropped:
                    tell(dropped)
                for note in report.notes:
                    tell(note)
                yield from report.kept


def _parts(document: Document, separator: str | None) -> list[Document]:
    """A file that holds many documents, divided: prompts with completions into pairs, texts where the separator stands."""
    if document.kind == "pairs" and len(document.pairs) > 1:
        pairs = enumerate(document.pairs, 1)
        return [
            Document.from_text(f"{pair.question}\n{pair.answer}", source=f"{document.source}:{number}", kind="pairs", pairs=[pair])
            for number, pair in pairs
        ]
    if separator is None or document.kind not in ("text", "code") or separator not in document.text:
        return [document]
    texts = [text for text in document.text.split(separator) if text.strip()]
    return [Document.from_text(text, source=f"{document.source}:{number}", kind=document.kind) for number, text in enumerate(texts, 1)]


def fingerprint(paths: Sequence[str]) -> str:
    """SHA-256 over the names, sizes and bytes of all files of the corpus. Raises DataError for a path that does not exist."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.exists():
            read_path(path)  # says what is wrong
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        for file in files:
            try:
                with file.open("rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror}", path=file) from error
            digest.update(f"{file.relative_to(path).as_posix()} {content}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def held_out(ids: Sequence[str], share: float, seed: int) -> list[bool]:
    """Which documents are held out: the ``share`` of them, at least one, whose hash with the seed is smallest. The same documents are
    chosen in whatever order they come. Raises PretrainingError when a half would be empty."""
    if share == 0.0:
        return [False] * len(ids)
    count = max(1, round(share * len(ids)))
    if count >= len(ids):
        known = f"the corpus has {len(ids)} document{'' if len(ids) == 1 else 's'}"
        raise PretrainingError(
            f"{known}, and corpus.validation {share:g} leaves none to learn from: add documents, name a corpus.separator that divides a "
            "file, or set corpus.validation to 0"
        )
    ranked = sorted(range(len(ids)), key=lambda number: hashlib.sha256(f"{seed}:{ids[number]}".encode()).digest())
    chosen = set(ranked[:count])
    return [number in chosen for number in range(len(ids))]


def document_tokens(tokenizer: Tokenizer, document: Document) -> list[int]:
    """The tokens of a document, with an end token behind them. Conversations and pairs come in the tokenizer's chat template; in other
    texts special tokens that are spelled out stay letters."""
    before, after = affixes(tokenizer)
    end = after or [int(tokenizer.eos_token_id)]
    if document.kind == "pairs" and document.pairs:
        turns = [Message(role, text) for pair in document.pairs for role, text in (("user", pair.question), ("assistant", pair.answer))]
        return [*dialogue_example(tokenizer, turns).tokens, *end]
    if document.kind == "dialogue" and speaks(document):
        return [*dialogue_example(tokenizer, document.messages).tokens, *end]
    return [*before, *tokenise(tokenizer, document.text, literal=True), *end]


def speaks(document: Document) -> bool:
    """Whether an assistant says something in it."""
    return any(message.role == "assistant" and message.content.strip() for message in document.messages)


class Told:
    """Counts what was left out of a corpus, by reason; ``records`` are all of it, to be kept."""

    def __init__(self) -> None:
        self.records: list[dict[str, str]] = []
        self.dropped: Counter[str] = Counter()

    def __call__(self, item: Dropped | Note) -> None:
        if isinstance(item, Dropped):
            self.dropped[re.split(": | as | of ", item.reason)[0].replace("boilerplate", "boilerplate line")] += 1
            self.records.append({"dropped": item.where, "reason": item.reason})
        else:
            left = item.what.startswith("left out")
            self.dropped["file left out"] += left
            self.records.append({"dropped" if left else "note": item.where, "reason": item.what})

    def summary(self) -> dict[str, Any]:
        """Reasons with how often, the most frequent first."""
        return {reason: count for reason, count in self.dropped.most_common() if count}
