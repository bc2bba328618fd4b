"""Blocks: who has which, what is found again, and what goes first."""

import pytest

from pilgrim.infer.blocks import BEGINNING, BlockPool, name_of


def names(tokens: list[int], size: int = 4) -> list[bytes]:
    found, before = [], BEGINNING
    for begin in range(0, len(tokens) - size + 1, size):
        before = name_of(before, tokens[begin : begin + size])
        found.append(before)
    return found


def write(pool: BlockPool, tokens: list[int]) -> list[int]:
    """A text that nobody shares, as the scheduler would have it written."""
    blocks: list[int] = []
    for _ in range(pool.blocks_for(len(tokens))):
        blocks.append(pool.take(blocks[-1] if blocks else None))
    for block, name in zip(blocks, names(tokens, pool.block_tokens), strict=False):
        pool.keep(block, name)
    return blocks


def test_a_name_says_all_that_came_before() -> None:
    a, b = names([1, 2, 3, 4, 5, 6, 7, 8]), names([9, 2, 3, 4, 5, 6, 7, 8])
    assert len({*a, *b}) == 4
    assert names([1, 2, 3, 4, 5, 6, 7, 8, 9]) == a


def test_texts_lie_in_one_piece_and_begin_in_lanes_of_their_own() -> None:
    pool = BlockPool(blocks=8, block_tokens=4, lane_blocks=4)
    first, second = write(pool, [*range(9)]), write(pool, [*range(20, 25)])
    assert (first, second) == ([0, 1, 2], [4, 5])
    assert pool.take(second[-1]) == 6
    assert pool.free == 2


def test_beginnings_are_found_as_long_as_nobody_needs_the_room() -> None:
    pool = BlockPool(blocks=8, block_tokens=4, lane_blocks=4)
    tokens = [*range(12)]
    blocks = write(pool, tokens)
    assert pool.find(names(tokens)) == blocks == [0, 1, 2]
    assert pool.find(names([*range(8), 99, 99, 99, 99])) == blocks[:2]
    pool.release(blocks)
    assert pool.free == 8
    found = pool.find(names(tokens))
    assert pool.unused(found) == 3
    pool.share(found)
    assert pool.free == 5 and pool.unused(found) == 0
    pool.release(found)
    write(pool, [*range(50, 62)])  # goes to the other lane, which was never used
    assert pool.find(names(tokens)) == blocks
    write(pool, [*range(70, 74)])  # and now to the first, from its beginning
    assert pool.find(names(tokens)) == []


def test_shared_blocks_stay_until_the_last_has_left() -> None:
    pool = BlockPool(blocks=2, block_tokens=4, lane_blocks=2)
    blocks = write(pool, [1, 2, 3, 4])
    pool.share(blocks)
    pool.release(blocks)
    assert pool.free == 1
    assert pool.take(None) == 1
    with pytest.raises(IndexError, match="all blocks of the cache are in use"):
        pool.take(None)


def test_what_is_there_twice_is_known_once() -> None:
    pool = BlockPool(blocks=4, block_tokens=4, lane_blocks=2)
    first, second = write(pool, [1, 2, 3, 4]), write(pool, [1, 2, 3, 4])
    pool.forget(second[0])
    assert pool.find(names([1, 2, 3, 4])) == first
    pool.forget(first[0])
    assert pool.find(names([1, 2, 3, 4])) == []
