"""Packed batches and the one label shift."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.lm.packing import Packed, targets

sequences = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=9)


@given(sequences)
@settings(max_examples=60, deadline=None)
def test_every_token_keeps_its_place(batch: list[list[int]]) -> None:
    packed = Packed.of(batch)
    assert [part.tolist() for part in packed.tokens.split(packed.lengths)] == batch
    assert packed.positions.tolist() == [place for sequence in batch for place in range(len(sequence))]
    assert packed.rows.tolist() == [row for row, sequence in enumerate(batch) for _ in sequence]
    assert packed.tokens[packed.starts].tolist() == [sequence[0] for sequence in batch]
    assert packed.tokens[packed.last].tolist() == [sequence[-1] for sequence in batch]


@given(sequences)
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_segment_once(batch: list[list[int]]) -> None:
    packed = Packed.of(batch)
    seen: list[int] = []
    for group in packed.groups:
        lengths = group.valid.sum(1)
        assert group.valid.shape[1] <= 1.5 * int(lengths.min()) + 8
        for index, valid in zip(group.index, group.valid, strict=True):
            here = index[valid].tolist()
            assert len({int(packed.rows[place]) for place in here}) == 1 and here == list(range(here[0], here[0] + len(here)))
        assert torch.equal(group.source, group.index[group.valid])
        seen += group.source.tolist()
    assert sorted(seen) == list(range(packed.total))


@st.composite
def supervised(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]]]:
    batch = draw(sequences)
    masks = [[False, *draw(st.lists(st.booleans(), min_size=len(s) - 1, max_size=len(s) - 1))] for s in batch]
    return batch, masks


@given(supervised())
@settings(max_examples=80, deadline=None)
def test_a_label_is_predicted_from_the_token_before_it(drawn: tuple[list[list[int]], list[list[bool]]]) -> None:
    batch, masks = drawn
    packed = Packed.of(batch)
    expected = [(row, t) for row, mask in enumerate(masks) for t, flag in enumerate(mask) if flag]
    if not expected:
        with pytest.raises(ValueError, match="nothing to learn"):
            targets(packed, masks)
        return
    positions, labels = targets(packed, masks)
    assert labels.tolist() == [batch[row][t] for row, t in expected]
    assert packed.rows[positions].tolist() == [row for row, _ in expected]
    assert packed.positions[positions].tolist() == [t - 1 for _, t in expected]


def test_wrong_masks_are_refused() -> None:
    packed = Packed.of([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="nothing precedes"):
        targets(packed, [[False, True], [True, False]])
    with pytest.raises(ValueError, match="3 entries for 4"):
        targets(packed, [[False, True], [False]])
    for empty in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one sequence"):
            Packed.of(empty)
