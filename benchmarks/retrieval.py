"""Searching 20,000 passages: retain's index against rank_bm25 and bm25s, on the same passages and questions, taking turns.

    python -m benchmarks.retrieval [--chunks 20000] [--queries 200] [--packages FOLDER] [--out benchmarks/results/retrieval.json]

The two libraries are no dependencies of retain: ``pip install --target FOLDER rank_bm25 bm25s`` and ``--packages FOLDER``; without them
only retain is measured. The passages: those of the study corpus (``corpora/study``), which the questions are about, among others that a
Markov chain over the same text wrote, so that words are as rare and as common as in English. A question's passage is the one that holds
the sentence it was written from. The libraries are given what their own pages show: lower-case words; ``rank_bm25_stems`` (quality
only) is rank_bm25 over the stems that retain's index has. A query's time includes cutting it into words. ``cpu`` is processor time of the
thread, which other work on the machine does not lengthen much; ``wall`` is the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from retain.data.chunking import chunks
from retain.data.selfstudy import StudyPassage, load_study_corpus, normalise
from retain.lm.devices import machine_facts
from retain.workspace import Chunk, Ledger, State, Store

CORPUS = Path("corpora/study")
TOP = 3
BLOCK = 20  # queries that an arm answers in a row
WORDS_A_CHUNK = 96  # about 128 tokens
CHUNKS_A_DOCUMENT = 4
_WORD = re.compile(r"\w+")

Search = Callable[[str], list[int]]  # a question -> numbers of the best passages, best first


class Query(NamedTuple):
    """A question and the numbers of the passages that answer it."""

    text: str
    gold: frozenset[int]


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def collection(count: int, queries: int, seed: int) -> tuple[list[tuple[str, str]], list[Query]]:
    """``count`` passages as (heading, text), the study corpus' among them, and questions with the passages that answer them."""
    generator = random.Random(seed)
    studied = load_study_corpus(sorted(CORPUS.glob("*.jsonl")))
    real = [(passage, piece.text) for passage in studied for piece in chunks(passage.text, lambda text: len(text.split()), WORDS_A_CHUNK)]
    if len(real) > count:
        raise SystemExit(f"the study corpus alone has {len(real)} passages: ask for more with --chunks")
    written = written_passages(studied, count - len(real), generator)
    mixed: list[tuple[StudyPassage | None, str, str]] = [(passage, passage.title, text) for passage, text in real]
    mixed += [(None, heading, text) for heading, text in written]
    generator.shuffle(mixed)
    places: dict[str, list[int]] = defaultdict(list)
    for number, (passage, _, _) in enumerate(mixed):
        if passage:
            places[passage.title].append(number)
    asked: list[Query] = []
    for passage in studied:
        for question in passage.questions:
            evidence = normalise(question.evidence)
            gold = frozenset(number for number in places[passage.title] if evidence and evidence in normalise(mixed[number][2]))
            asked += [Query(wording, gold) for wording in (question.question, question.reworded) if gold and wording]
    return [(heading, text) for _, heading, text in mixed], generator.sample(asked, min(queries, len(asked)))


def written_passages(studied: Sequence[StudyPassage], count: int, generator: random.Random) -> list[tuple[str, str]]:
    """Passages by a chain over pairs of words of the corpus; headings are made of two words of theirs."""
    following: dict[str, list[str]] = defaultdict(list)
    for passage in studied:
        text = passage.text.split()
        for word, after in zip(text, [*text[1:], text[0]], strict=True):
            following[word].append(after)
    found = []
    word = "The"
    for _ in range(count):
        text = []
        for _ in range(WORDS_A_CHUNK):
            word = generator.choice(following[word])
            text.append(word)
        found.append((" ".join(generator.sample(text, 2)), " ".join(text)))
    return found


def retain_search(passages: Sequence[tuple[str, str]], folder: Path) -> Search:
    """The workspace's own search over a ledger with these passages."""
    store = Store(folder)
    ledger = Ledger.open(folder / "ledger.db", store)
    pieces = [Chunk(f"d{n // CHUNKS_A_DOCUMENT}", n % CHUNKS_A_DOCUMENT, *passage) for n, passage in enumerate(passages)]
    keys = list(dict.fromkeys(piece.document for piece in pieces))
    with ledger.transaction():
        for key in keys:
            ledger.add_document({"id": key}, store.put(b"text"))
        ledger.commit_update("learn", ledger.head(), store.put(State().to_bytes()), documents=keys, chunks=pieces)
    return lambda query: [int(hit.document[1:]) * CHUNKS_A_DOCUMENT + hit.chunk for hit in ledger.search(query, k=TOP)]


def rank_bm25_search(passages: Sequence[tuple[str, str]], cut: Callable[[str], list[str]] = words) -> Search:
    """rank_bm25's BM25Okapi, with numpy's choice of the best."""
    import numpy as np
    from rank_bm25 import BM25Okapi  # type: ignore[import-not-found]

    index = BM25Okapi([cut(f"{heading} {text}") for heading, text in passages])

    def search(query: str) -> list[int]:
        scores = index.get_scores(cut(query))
        best = np.argpartition(-scores, TOP)[:TOP]
        return [int(number) for number in best[np.argsort(-scores[best])]]

    return search


def bm25s_search(passages: Sequence[tuple[str, str]]) -> Search:
    """bm25s with its own tokenizer and its default stop words."""
    import bm25s  # type: ignore[import-not-found]

    index = bm25s.BM25()
    index.index(bm25s.tokenize([f"{heading} {text}" for heading, text in passages], show_progress=False), show_progress=False)

    def search(query: str) -> list[int]:
        found, _ = index.retrieve(bm25s.tokenize(query, show_progress=False), k=TOP, show_progress=False, n_threads=0)
        return [int(number) for number in found[0]]

    return search


def stems(texts: Iterable[str]) -> Callable[[str], list[str]]:
    """Cutting into the stems of retain's index, by a table of its own that is asked for the stem of every word."""
    vocabulary = sorted({word for text in texts for word in words(text)})
    table = sqlite3.connect(":memory:")
    table.execute("CREATE VIRTUAL TABLE t USING fts5(word, tokenize='porter unicode61 remove_diacritics 2')")
    table.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
    table.executemany("INSERT INTO t(rowid, word) VALUES (?, ?)", list(enumerate(vocabulary)))
    known = {vocabulary[place]: stem for stem, place in table.execute("SELECT term, doc FROM v")}
    return lambda text: [known.get(word, word) for word in words(text)]


def timed(searches: dict[str, Search], queries: Sequence[Query]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of every search for a query: the arms take turns, ``BLOCK`` queries at a time, so that what else the machine does meets
    all of them."""
    times: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in searches}
    for first in range(0, len(queries), BLOCK):
        for name, search in searches.items():
            for query in queries[first : first + BLOCK]:
                wall, cpu = time.perf_counter(), time.thread_time()
                search(query.text)
                times[name]["cpu"].append((time.thread_time() - cpu) * 1e3)
                times[name]["wall"].append((time.perf_counter() - wall) * 1e3)
    return {name: {clock: _summary(values) for clock, values in clocks.items()} for name, clocks in times.items()}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p95": statistics.quantiles(values, n=20)[-1], "mean": statistics.fmean(values)}


def quality(searches: dict[str, Search], queries: Sequence[Query]) -> dict[str, dict[str, float]]:
    """Share of the questions whose passage comes first or among the best three, and the part of the best three shared with rank_bm25."""
    found = {name: [search(query.text) for query in queries] for name, search in searches.items()}
    result: dict[str, dict[str, float]] = {}
    for name, lists in found.items():
        result[name] = {
            "first": statistics.fmean(bool(best[:1] and best[0] in query.gold) for best, query in zip(lists, queries, strict=True)),
            "top_3": statistics.fmean(not query.gold.isdisjoint(best) for best, query in zip(lists, queries, strict=True)),
        }
        for other in ("rank_bm25", "rank_bm25_stems"):
            if other in found:
                same = [len(set(best) & set(theirs)) / TOP for best, theirs in zip(lists, found[other], strict=True)]
                result[name][f"top_3_shared_with_{other}"] = statistics.fmean(same)
    return result


def measure(count: int, queries: int, seed: int) -> dict[str, Any]:
    """Times and quality of what is installed."""
    passages, asked = collection(count, queries, seed)
    with tempfile.TemporaryDirectory() as folder:
        searches = {"retain": retain_search(passages, Path(folder))}
        for name, build in (("rank_bm25", rank_bm25_search), ("bm25s", bm25s_search)):
            try:
                searches[name] = build(passages)
            except ImportError:
                print(f"{name} is not installed: pip install --target FOLDER rank_bm25 bm25s, and --packages FOLDER")
        milliseconds = timed(searches, asked)
        judged = dict(searches)
        if "rank_bm25" in searches:
            texts = [*(f"{heading} {text}" for heading, text in passages), *(query.text for query in asked)]
            judged["rank_bm25_stems"] = rank_bm25_search(passages, stems(texts))
        result: dict[str, Any] = {
            "chunks": count, "queries": len(asked), "seed": seed, "milliseconds": milliseconds, "quality": quality(judged, asked),
        }  # fmt: skip
    for name in searches:
        if name != "retain":
            result[f"{name}_over_retain"] = {
                clock: milliseconds[name][clock]["median"] / milliseconds["retain"][clock]["median"] for clock in ("cpu", "wall")
            }
            result.setdefault("versions", {})[name] = metadata.version(name)
    return result


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=Path, help="folder with rank_bm25 and bm25s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieval.json"))
    options = parser.parse_args()
    if options.packages:
        sys.path.append(str(options.packages))
    result = measure(options.chunks, options.queries, options.seed)
    for name, found in result["quality"].items():
        times = result["milliseconds"].get(name)
        spent = f"{times['cpu']['median']:.3f} ms (p95 {times['cpu']['p95']:.3f})" if times else "not timed"
        shared = ", ".join(f"{key.removeprefix('top_3_shared_with_')} {value:.2f}" for key, value in found.items() if "shared" in key)
        print(f"{name:>16}: {spent:>22}, passage first {found['first']:.1%}, in the best 3 {found['top_3']:.1%}; shared: {shared or '-'}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"benchmark": "retrieval", "machine": machine_facts(), "results": [result]}, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
