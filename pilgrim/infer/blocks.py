"""Which block of the cache belongs to whom: memory handed out in pages, and shared where texts begin alike.

The cache is cut into blocks of a few tokens (Kwon et al. 2023, PagedAttention). A text owns a list of
blocks that grows as it is written, so nobody has to know beforehand how long it will get, and whoever is
finished gives back whole blocks that fit everybody.

Keys and values depend on nothing but the tokens up to theirs. So a full block has a name: a hash of its
tokens and of the name of the block before it. Texts that begin alike have blocks of the same names, and
use the same ones: a conversation's next turn, an instruction before every question, many samples of one
prompt. Only full blocks are shared, and full blocks are never written again, so nobody has to copy.

A block that nobody uses any more keeps what it holds, until somebody needs the room. Who goes first? A CPU
reads a text in place if its blocks lie behind each other, and has to copy it together if not (cache.py). So
blocks are arranged in *lanes*, each long enough for the longest text. A newcomer begins in the lane with the
fewest blocks in use, and of those the least recently used one; then its text goes on into the next block if
that is free. What was there is forgotten.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

BEGINNING = b""  # the name of what is before the first block


def name_of(before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block: 128 bits, so that two different beginnings never share one in practice."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Counts who uses which block, and knows the full ones by name. Holds no tensors."""

    def __init__(self, blocks: int, block_tokens: int, lane_blocks: int) -> None:
        self.blocks, self.block_tokens, self.lane_blocks = blocks, block_tokens, lane_blocks
        self._users = [0] * blocks
        self._names: list[bytes | None] = [None] * blocks
        self._by_name: dict[bytes, int] = {}
        lanes = -(-blocks // lane_blocks)
        self._in_use = [0] * lanes
        self._last_use = [0] * lanes
        self._clock = 0
        self.free = blocks  # blocks that nobody uses, whatever they still hold

    def blocks_for(self, tokens: int) -> int:
        """How many blocks that many tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_tokens)

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The blocks that hold the beginning of a text with these names, as far as they are there."""
        found = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def unused(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody uses: those that `share` would take from `free`."""
        return sum(self._users[block] == 0 for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """One more user for each of these blocks."""
        for block in blocks:
            self._use(block)

    def take(self, after: int | None) -> int:
        """A block for new tokens, if possible the one behind `after`. Raises IndexError if none is free."""
        if self.free == 0:
            raise IndexError("all blocks of the cache are in use")
        block = self._behind(after)
        if block is None:
            block = self._new_beginning()
        self.forget(block)
        self._use(block)
        return block

    def keep(self, block: int, name: bytes) -> None:
        """`block` is full and may be found by its name; if another block has the same, that one stays."""
        if name not in self._by_name:
            self._by_name[name] = block
            self._names[block] = name

    def forget(self, block: int) -> None:
        """What `block` holds is of no use any more."""
        name = self._names[block]
        if name is not None:
            del self._by_name[name]
            self._names[block] = None

    def forget_all(self) -> None:
        """What any block holds is of no use any more."""
        for block in list(self._by_name.values()):
            self.forget(block)

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each of these blocks. What they hold can be found until it is written over."""
        self._clock += 1
        for block in blocks:
            self._users[block] -= 1
            if self._users[block] == 0:
                self.free += 1
                self._in_use[block // self.lane_blocks] -= 1
                self._last_use[block // self.lane_blocks] = self._clock

    def _use(self, block: int) -> None:
        if self._users[block] == 0:
            self.free -= 1
            self._in_use[block // self.lane_blocks] += 1
        self._users[block] += 1

    def _behind(self, after: int | None) -> int | None:
        """The next block, if it is free and in the same lane."""
        if after is None or (after + 1) % self.lane_blocks == 0 or after + 1 >= self.blocks:
            return None
        return None if self._users[after + 1] else after + 1

    def _new_beginning(self) -> int:
        """The first free block of the emptiest lane; of several, of the one that was left longest ago."""
        begins = range(0, self.blocks, self.lane_blocks)
        room = (lane for lane, begin in enumerate(begins) if self._in_use[lane] < self._length(begin))
        lane = min(room, key=lambda lane: (self._in_use[lane], self._last_use[lane]))
        begin = lane * self.lane_blocks
        return next(b for b in range(begin, begin + self._length(begin)) if not self._users[b])

    def _length(self, begin: int) -> int:
        return min(self.lane_blocks, self.blocks - begin)  # the last lane may be shorter
