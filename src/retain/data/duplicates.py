"""Exact and near-duplicates: a hash of the normalised text, and MinHash over phrases of five words."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from retain.data.document import normalise
from retain.data.errors import DataError

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_WORDS = 5
PERMUTATIONS = 128
_SEED = 1
_SCHEME = "affine32"
_MAGIC = b"RDS1"
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Signature:
    """What duplicates are recognised by; `len(bytes)` is 548.

    Attributes:
        digest: SHA-256 of the normalised text, 32 bytes.
        minima: 128 MinHash values of the text's five-word phrases.
    """

    digest: bytes
    minima: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Signature:
        """The signature of a text: deterministic, the same on every machine and in every run."""
        sketch = _minhash(None)
        sketch.update_batch([shingle.encode("utf-8", "replace") for shingle in shingles(text)])
        digest = hashlib.sha256(normalise(text).encode("utf-8", "replace")).digest()
        return cls(digest, tuple(int(value) for value in sketch.hashvalues))

    def to_bytes(self) -> bytes:
        """The signature as bytes, to keep in a database."""
        return _MAGIC + self.digest + struct.pack(f"<{PERMUTATIONS}I", *self.minima)

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature:
        """Read what `to_bytes` wrote; raises DataError when it is something else."""
        if len(data) != len(_MAGIC) + 32 + 4 * PERMUTATIONS or not data.startswith(_MAGIC):
            raise DataError(f"{len(data)} bytes that are not a signature of a text", fix="compute the signature again")
        return cls(bytes(data[4:36]), struct.unpack(f"<{PERMUTATIONS}I", data[36:]))

    def similarity(self, other: Signature) -> float:
        """Estimated Jaccard similarity of the two texts' phrases, from 0 to 1 (standard error at most 0.045)."""
        if self.digest == other.digest:
            return 1.0
        return sum(a == b for a, b in zip(self.minima, other.minima, strict=True)) / PERMUTATIONS


class Match(NamedTuple):
    """A known text that is like the one asked about: its id, the estimated similarity, and whether the texts are equal."""

    id: str
    similarity: float
    exact: bool


class NearDuplicateIndex:
    """A set of known texts that can be asked whether it holds a text, or one that is nearly the same.

    Args:
        threshold: estimated Jaccard similarity of five-word phrases from which a text counts as a near-duplicate.

    Raises:
        DataError: the threshold is not in (0, 1].
    """

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0.0 < threshold <= 1.0:
            raise DataError(f"the near-duplicate threshold must be above 0 and at most 1, not {threshold!r}", field="threshold")
        from datasketch import MinHashLSH

        self.threshold = threshold
        self._signatures: dict[str, Signature] = {}
        self._exact: dict[bytes, str] = {}
        self._near: Any = MinHashLSH(threshold=threshold * 0.9, num_perm=PERMUTATIONS)  # lower: misses nothing; verified in query

    def __len__(self) -> int:
        return len(self._signatures)

    def __contains__(self, id: object) -> bool:
        return id in self._signatures

    def add(self, id: str, text: str | Signature) -> Signature:
        """Make a text known under an id; an id that is known already is replaced. Returns the signature, to be stored."""
        signature = _signature(text)
        self.remove(id)
        self._signatures[id] = signature
        self._exact.setdefault(signature.digest, id)
        self._near.insert(id, _minhash(signature))
        return signature

    def remove(self, id: str) -> None:
        """Forget a text; an unknown id is no error."""
        signature = self._signatures.pop(id, None)
        if signature is None:
            return
        self._near.remove(id)
        if self._exact.get(signature.digest) == id:
            del self._exact[signature.digest]
            twin = next((key for key, known in self._signatures.items() if known.digest == signature.digest), None)
            if twin is not None:
                self._exact[signature.digest] = twin

    def query(self, text: str | Signature) -> list[Match]:
        """All known texts that are equal or nearly the same, the most similar first."""
        signature = _signature(text)
        found: set[str] = set(self._near.query(_minhash(signature)))
        if signature.digest in self._exact:
            found.add(self._exact[signature.digest])
        matches = []
        for id in found:
            known = self._signatures[id]
            matches.append(Match(id, signature.similarity(known), known.digest == signature.digest))
        near = (match for match in matches if match.exact or match.similarity >= self.threshold)
        return sorted(near, key=lambda match: (not match.exact, -match.similarity, match.id))

    def find(self, text: str | Signature) -> Match | None:
        """The best match, or None when the text is new."""
        return next(iter(self.query(text)), None)

    def signatures(self) -> Iterator[tuple[str, bytes]]:
        """Every id with its signature as bytes, in the order of adding: what `restore` reads."""
        return ((id, signature.to_bytes()) for id, signature in self._signatures.items())

    @classmethod
    def restore(cls, known: Iterable[tuple[str, bytes]], threshold: float = 0.8) -> NearDuplicateIndex:
        """An index of the texts whose stored signatures are given."""
        index = cls(threshold)
        for id, data in known:
            index.add(id, Signature.from_bytes(data))
        return index


def shingles(text: str, words: int = SHINGLE_WORDS) -> set[str]:
    """All runs of `words` neighbouring words, without case and punctuation; a shorter text is one run.

    Text without spaces between words (Chinese, Japanese, Thai) is taken by characters.
    """
    tokens = [token for token in (_bare(word) for word in normalise(text).casefold().split()) if token]
    if tokens and sum(map(len, tokens)) / len(tokens) > 20:
        tokens = [character for character in "".join(tokens) if character.isalnum()]
    if len(tokens) <= words:
        return {" ".join(tokens)}
    return {" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1)}


def containment(part: str, whole: str, words: int = SHINGLE_WORDS) -> float:
    """Share of the phrases of `part` that occur in `whole`, from 0 to 1: finds test questions that leaked into training text."""
    wanted = shingles(part, words)
    if len(wanted) == 1 and len(next(iter(wanted)).split()) < words:
        words = max(len(next(iter(wanted)).split()), 1)
    return len(wanted & shingles(whole, words)) / len(wanted)


def _bare(word: str) -> str:
    return word if word.isalnum() else "".join(character for character in word if _WORD.match(character))


def _signature(text: str | Signature) -> Signature:
    return text if isinstance(text, Signature) else Signature.of(text)


def _minhash(signature: Signature | None) -> MinHash:
    import numpy as np
    from datasketch import MinHash

    values = None if signature is None else np.array(signature.minima, dtype=np.uint32)
    return MinHash(num_perm=PERMUTATIONS, seed=_SEED, scheme=_SCHEME, hashvalues=values)
