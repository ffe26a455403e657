"""The content-addressed store: same content same name, and nothing read without being checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retain.workspace import Damaged, NotFound, Store, digest_of
from retain.workspace.store import tensor_bytes

TENSORS = {
    "b.lora_B.weight": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "a.lora_A.weight": torch.full((3,), -0.5, dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
}
METADATA = {"rank": "8", "alpha": "16", "base": "größer", "lineage": "[]", "kind": "lora"}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=500))
def test_what_was_put_is_got(store: Store, data: bytes) -> None:
    digest = store.put(data)
    assert store.get(digest) == data
    assert digest == digest_of(data) == store.put(data)
    assert digest in store


def test_put_is_idempotent(store: Store) -> None:
    digests = [store.put(b"same") for _ in range(3)]
    assert len(set(digests)) == 1
    assert list(store) == digests[:1]
    assert store.sizes() == {digests[0]: 4}
    assert store.path(digests[0]) == store.root / "objects" / digests[0][:2] / digests[0][2:]


def test_tensors_come_back_bit_for_bit(store: Store) -> None:
    tensors, metadata = store.get_tensors(store.put_tensors(TENSORS, METADATA))
    assert metadata == METADATA
    assert list(tensors) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_tensors_that_share_storage_are_stored(store: Store) -> None:
    base = torch.arange(10.0)
    tensors, _ = store.get_tensors(store.put_tensors({"whole": base, "part": base[3:5], "again": base}))
    assert tensors["part"].tolist() == [3.0, 4.0]
    assert torch.equal(tensors["whole"], tensors["again"])


def test_equal_content_has_equal_bytes_whatever_the_order_and_the_process(store: Store) -> None:
    expected = store.put_tensors(TENSORS, METADATA)
    assert store.put_tensors(dict(reversed(TENSORS.items())), dict(reversed(METADATA.items()))) == expected
    program = f"""
import torch, hashlib
from retain.workspace.store import tensor_bytes
tensors = {{"x": torch.arange(4.0), "y": torch.zeros(2, dtype=torch.int8)}}
print(hashlib.sha256(tensor_bytes(tensors, {METADATA!r})).hexdigest())
"""
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    here = tensor_bytes({"y": torch.zeros(2, dtype=torch.int8), "x": torch.arange(4.0)}, METADATA)
    assert other.stdout.strip() == digest_of(here)


def test_values_names_and_metadata_all_count(store: Store) -> None:
    x = torch.zeros(2)
    variants = [({"x": x}, {}), ({"y": x}, {}), ({"x": x + 1}, {}), ({"x": x}, {"k": "v"}), ({"x": x.double()}, {}), ({"x": x[None]}, {})]
    assert len({store.put_tensors(tensors, metadata) for tensors, metadata in variants}) == len(variants)


def test_a_damaged_object_is_found_and_quarantined_and_the_rest_works(store: Store) -> None:
    digests = [store.put(f"object {number}".encode()) for number in range(10)]
    bad, cut, gone = digests[3:6]
    store.path(bad).write_bytes(b"object X")
    store.path(cut).write_bytes(b"")
    store.path(gone).unlink()
    problems = store.verify(expected=digests)
    assert {problem.path for problem in problems} == {store.path(bad), store.path(cut), store.path(gone)}
    with pytest.raises(Damaged, match=r"does not match its SHA-256.*quarantine") as caught:
        store.get(bad)
    assert caught.value.path == store.path(bad)
    for digest in (bad, cut):
        assert store.quarantine(digest).parent == store.root / "quarantine"
        with pytest.raises(NotFound):
            store.get(digest)
    assert store.verify() == []
    assert [store.get(digest) for digest in store] == [store.get(digest) for digest in sorted(set(digests) - {bad, cut, gone})]
    assert store.put(b"object 3") == bad
    assert store.get(bad) == b"object 3"


def test_putting_again_mends_a_damaged_object(store: Store) -> None:
    digest = store.put(b"content")
    store.path(digest).write_bytes(b"c")
    assert store.put(b"content") == digest
    assert store.get(digest) == b"content"


def test_a_blob_is_not_tensors(store: Store) -> None:
    for content in (b"", b"hello", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}x"):
        with pytest.raises(Damaged, match="not a safetensors file"):
            store.get_tensors(store.put(content))


@pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 65])
def test_a_digest_is_never_a_path(store: Store, digest: str) -> None:
    with pytest.raises(NotFound):
        store.get(digest)


def test_collect_keeps_what_is_referenced_and_what_is_young(store: Store) -> None:
    old, kept, young, again = (store.put(text) for text in (b"old", b"kept", b"young", b"again"))
    left_over = store.path(old).parent / ".tmp-1-dead"
    left_over.write_bytes(b"half")
    for path in (store.path(old), store.path(kept), store.path(again), left_over):
        os.utime(path, (1, 1))
    assert store.put(b"again") == again  # about to be referenced
    assert store.collect({kept}) == [old]
    assert set(store) == {kept, young, again}
    assert not left_over.exists()
    assert set(store.collect({kept}, grace=0)) == {young, again}
    assert store.get(kept) == b"kept"


def test_temporary_and_foreign_files_are_not_objects(store: Store) -> None:
    digest = store.put(b"x")
    (store.path(digest).parent / ".tmp-1-half").write_bytes(b"half")
    (store.path(digest).parent / "notes.txt").write_bytes(b"mine")
    (store.root / "objects" / "zz").mkdir()
    assert list(store) == [digest]
    assert store.verify() == []


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "nothing" / "here")
    assert list(store) == [] == store.verify()
    assert store.collect(set()) == []
    assert store.sizes() == {}
