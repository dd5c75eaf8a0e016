"""A session against the forward over the whole sequence: every way to feed gives the same logits.

Prefill, decode, chunks, turns, drafts in a line and in a tree, and what is done to the cache
between them. Storage alone is tested in `test_cache`, arguments in `test_bad_input`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from elidir.backends.runtime import Rows, Session
from tests.runtime.tiny import TOLERANCE, left_padded, session, tokens, whole


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, **TOLERANCE)


def feed_sizes(under_way: Session, ids: Tensor, sizes: list[int], **more: Any) -> Tensor:
    """Feed a sequence in pieces of these sizes; returns the logits of all of it."""
    parts = ids.split(sizes, dim=1)
    return torch.cat([under_way.feed(part, **more) for part in parts], dim=1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sizes", [[16], [9, *[1] * 7], [4, 4, 4, 4], [1, 15], [7, 1, 6, 2]])
def test_feeding_in_pieces_equals_the_whole(batch: int, sizes: list[int]) -> None:
    """Prefill; prefill and decode; chunks; a token first; turns of several tokens."""
    ids = tokens(batch, 16)
    close(feed_sizes(session(batch), ids, sizes), whole(ids))


def test_the_cache_grows_while_decoding() -> None:
    ids = tokens(2, 40)
    under_way = session(2, capacity=3)
    close(feed_sizes(under_way, ids, [5, *[1] * 35]), whole(ids))
    assert under_way.cache.capacity >= 40


def test_left_padded_rows_equal_the_rows_alone() -> None:
    lengths = (4, 9, 1, 7)
    ids, valid = left_padded(lengths)
    under_way = session(4)
    found = under_way.feed(ids, valid)
    more = tokens(4, 3, seed=1)
    found = torch.cat([found, *(under_way.feed(t) for t in more.split(1, dim=1))], dim=1)
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row : row + 1, -length:], more[row : row + 1]], dim=1)
        close(found[row, -length - 3 :], whole(alone)[0])


def test_left_padded_batch_equals_the_padded_forward() -> None:
    ids, valid = left_padded((4, 9, 1, 7))
    close(session(4).feed(ids, valid)[valid], whole(ids, valid)[valid])


def test_a_padded_prompt_in_chunks_one_of_them_all_padding() -> None:
    ids, valid = left_padded((2, 9))
    under_way = session(2)
    parts = zip(ids.split(3, dim=1), valid.split(3, dim=1), strict=True)
    found = torch.cat([under_way.feed(i, v) for i, v in parts], dim=1)
    close(found[valid], whole(ids, valid)[valid])


def test_second_turn_of_rows_of_different_lengths() -> None:
    """Padding of the second turn stands between the turns, and does not count as a position."""
    first, real = left_padded((3, 6))
    second, real2 = left_padded((5, 2), seed=1)
    under_way = session(2)
    under_way.feed(first, real)
    found = under_way.feed(second, real2)
    for row in range(2):
        alone = torch.cat([first[row][real[row]], second[row][real2[row]]])[None]
        close(found[row][real2[row]], whole(alone)[0, -int(real2[row].sum()) :])


def spy(under_way: Session) -> list[tuple[Any, ...]]:
    """Return a list that gets the inputs of each step from now on."""
    seen: list[tuple[Any, ...]] = []
    inner = under_way.step

    def step(*inputs: Any) -> Any:
        seen.append(tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs))
        return inner(*inputs)

    under_way.step = step
    return seen


def test_decode_without_padding_needs_no_mask() -> None:
    under_way = session()
    seen = spy(under_way)
    feed_sizes(under_way, tokens(1, 6), [4, 1, 1])
    assert seen[0][3].shape == (1, 4, 4)
    assert [inputs[3] for inputs in seen[1:]] == [None, None]


def test_positions_are_those_of_transformers() -> None:
    """The rows of `tiny` are rotary, which a shift of all positions would not show."""
    ids, valid = left_padded((2, 4))
    under_way = session(2)
    seen = spy(under_way)
    under_way.feed(ids, valid)
    under_way.feed(tokens(2, 1))
    assert [inputs[1].tolist() for inputs in seen] == [[[0, 0, 0, 1], [0, 1, 2, 3]], [[2], [4]]]
    assert seen[1][2].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert seen[1][3].tolist() == [[[False, False, True, True, True]], [[True] * 5]]


@pytest.mark.parametrize(
    ("rows", "wanted"), [(Rows.LAST, [[5], [5]]), ([0, 3], [[0, 3]] * 2), ([[1], [4]], [[1], [4]])]
)
def test_logits_of_the_wanted_rows_only(rows: Any, wanted: list[list[int]]) -> None:
    ids = tokens(2, 6)
    index = torch.tensor(wanted)[..., None].expand(-1, -1, 61)
    close(session(2).feed(ids, rows=rows), whole(ids).gather(1, index))


def test_given_positions_are_used_and_counted_on_from() -> None:
    ids = tokens(1, 5)
    by_hand = session()
    found = by_hand.feed(ids[:, :3], positions=torch.arange(3))
    found = torch.cat([found, by_hand.feed(ids[:, 3:])], dim=1)
    close(found, whole(ids))
    shifted = session()
    shifted.feed(ids[:, :3], positions=torch.tensor([[0, 1, 7]]))
    assert int(shifted.cache.next_positions()) == 8


# ---- drafts


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_a_line_of_drafted_tokens_verified_and_cut(kept: int) -> None:
    ids, draft = tokens(1, 8), tokens(1, 5, seed=1)
    under_way = session()
    under_way.feed(ids)
    close(under_way.feed(draft), whole(torch.cat([ids, draft], dim=1))[:, 8:])
    under_way.accept(range(kept))
    text = torch.cat([ids, draft[:, :kept], tokens(1, 1, seed=2)], dim=1)
    close(under_way.feed(text[:, -1:]), whole(text)[:, -1:])


#      0
#    1   2      and 5, a second child of the text, with 6 below it
#   3     4
PARENTS = [-1, 0, 0, 1, 2, -1, 5]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [5], [5, 6]]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_each_branch_of_a_drafted_tree_equals_the_branch_alone(path: list[int]) -> None:
    ids, draft = tokens(1, 8), tokens(1, 7, seed=1)
    under_way = session()
    under_way.feed(ids)
    found = under_way.feed(draft, parents=PARENTS)
    text = torch.cat([ids, draft[:, path]], dim=1)
    close(found[:, path], whole(text)[:, 8:])
    under_way.accept(path)
    more = torch.cat([text, tokens(1, 2, seed=2)], dim=1)
    close(under_way.feed(more[:, -2:]), whole(more)[:, -2:])


def test_rows_of_a_batch_keep_different_branches() -> None:
    ids, valid = left_padded((3, 8))
    draft = tokens(2, 7, seed=1)
    under_way = session(2)
    under_way.feed(ids, valid)
    under_way.feed(draft, parents=PARENTS)
    paths = [[0, 2, 4], [5]]
    under_way.accept([paths[0], [5, -1, -1]])
    more = tokens(2, 2, seed=2)
    found = under_way.feed(more)
    for row, path in enumerate(paths):
        text = torch.cat([ids[row][valid[row]], draft[row, path], more[row]])[None]
        close(found[row], whole(text)[0, -2:])


def test_rows_of_a_batch_may_have_different_trees() -> None:
    ids, draft = tokens(2, 4), tokens(2, 3, seed=1)
    under_way = session(2)
    under_way.feed(ids)
    found = under_way.feed(draft, parents=[[-1, 0, 1], [-1, -1, 1]])
    line = whole(torch.cat([ids, draft], dim=1))[0, 4:]
    close(found[0], line)
    close(found[1, [1, 2]], whole(torch.cat([ids[1], draft[1, 1:]])[None])[0, 4:])


# ---- between steps


def test_crop_and_feed_again() -> None:
    ids, other = tokens(2, 10), tokens(2, 4, seed=1)
    under_way = session(2)
    under_way.feed(ids)
    under_way.crop(6)
    text = torch.cat([ids[:, :6], other], dim=1)
    close(under_way.feed(other), whole(text)[:, 6:])
    under_way.crop(0)
    close(under_way.feed(ids), whole(ids))


def test_crop_away_the_padding_makes_rows_dense_again() -> None:
    ids, valid = left_padded((3, 5))
    under_way = session(2)
    under_way.feed(ids, valid)
    under_way.crop(0)
    assert under_way.cache.dense
    close(under_way.feed(tokens(2, 4)), whole(tokens(2, 4)))


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [1, 1, 0, 1], [1]])
def test_reorder_permutes_copies_and_drops_rows(rows: list[int]) -> None:
    ids, valid = left_padded((3, 6))
    more = tokens(len(rows), 2, seed=1)
    under_way = session(2)
    under_way.feed(ids, valid)
    under_way.reorder(rows)
    found = under_way.feed(more)
    for row, source in enumerate(rows):
        text = torch.cat([ids[source][valid[source]], more[row]])[None]
        close(found[row], whole(text)[0, -2:])


def test_restore_comes_back_to_the_snapshot_whatever_happened_since() -> None:
    ids, more = tokens(2, 6), tokens(2, 3, seed=1)
    under_way = session(2, capacity=8)
    under_way.feed(ids)
    kept = under_way.snapshot()
    under_way.feed(tokens(2, 20, seed=2))
    under_way.gather(torch.tensor([3, 1, 9]))
    under_way.reorder([0])
    under_way.restore(kept)
    close(under_way.feed(more), whole(torch.cat([ids, more], dim=1))[:, 6:])


def test_a_snapshot_goes_into_another_session() -> None:
    ids, more = tokens(1, 6), tokens(3, 3, seed=1)
    first, second = session(), session()
    first.feed(ids)
    second.restore(first.snapshot())
    second.reorder([0, 0, 0])
    text = torch.cat([ids.expand(3, -1), more], dim=1)
    close(second.feed(more), whole(text)[:, 6:])


def test_a_failed_step_leaves_the_session_as_it_was() -> None:
    ids = tokens(1, 8)
    under_way = session(capacity=6)
    under_way.feed(ids[:, :5])
    good = under_way.step

    def broken(*inputs: Any) -> Any:
        good(*inputs)
        raise RuntimeError("out of memory")

    under_way.step = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        under_way.feed(tokens(1, 3, seed=1))
    under_way.step = good
    close(under_way.feed(ids[:, 5:]), whole(ids)[:, 5:])


def test_stats_count_tokens_seconds_and_bytes() -> None:
    under_way = session(2)
    feed_sizes(under_way, tokens(2, 6), [4, 1, 1])
    stats = under_way.stats
    assert [(c.new, c.past) for c in stats.calls] == [(4, 0), (1, 4), (1, 5)]
    assert stats.tokens == 6
    assert stats.seconds > 0
    # 2 layers of 2 heads, 8 + 8 channels of 8 bytes, 2 rows of 6 tokens.
    assert stats.kv_bytes == 2 * 2 * 16 * 8 * 2 * 6
