"""Who reads what in a pass. That replies come out right under any schedule is tested in numerics."""

from pilgrim.infer.blocks import BlockPool
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request, Scheduler, Work


def ask(arrival: int, tokens: int, first: int = 0) -> Request:
    prompt = [first + i for i in range(tokens)]
    return Request(prompt, tokens, 100, Sampling(), (), [0.5] * 100, arrival)


def make(blocks: int = 16, rows: int = 4, tokens_per_pass: int = 10) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4, 8), rows, tokens_per_pass)


def go(queue: Scheduler) -> list[tuple[int, int]]:
    """A pass: (arrival, tokens) of each; whoever is read to the end gets a token."""
    work = queue.plan()
    ends = [each.request for each in work if each.to_the_end]
    queue.done(work)
    for request in ends:
        request.tokens.append(1000 + len(request.tokens))
    return [(request.arrival, count) for request, count in work]


def test_writing_goes_first_and_long_prompts_come_in_chunks() -> None:
    queue = make()
    queue.add(ask(1, 3))
    queue.add(ask(2, 25, first=100))
    queue.add(ask(3, 2, first=200))
    assert [go(queue) for _ in range(4)] == [
        [(1, 3), (2, 7)],
        [(1, 1), (2, 9)],
        [(1, 1), (2, 9)],
        [(1, 1), (2, 1), (3, 2)],
    ]


def test_equal_beginnings_in_one_pass_are_read_once() -> None:
    queue = make(tokens_per_pass=100)
    for arrival in (1, 2, 3):
        queue.add(ask(arrival, 10))
    assert go(queue) == [(1, 10), (2, 2), (3, 2)]


def test_one_block_stays_in_reserve_for_each_at_work() -> None:
    queue = make(blocks=4, tokens_per_pass=100)
    first, second = ask(1, 7), ask(2, 7, first=100)
    queue.add(first)
    queue.add(second)
    assert go(queue) == [(1, 7)]
    for _ in range(9):
        assert go(queue) == [(1, 1)]
    queue.remove(first)
    assert go(queue) == [(2, 7)]


def test_a_preempted_request_waits_before_later_ones() -> None:
    queue = make(blocks=5, tokens_per_pass=100)
    one, two, three = ask(1, 5), ask(2, 3, first=100), ask(3, 3, first=200)
    for request in (one, two, three):
        queue.add(request)
    go(queue)
    assert queue.running == [one, two]
    while two in queue.running:
        go(queue)
    assert list(queue.waiting) == [two, three]
    assert two.blocks == [] and two.read == 0
    assert len(one.blocks) + queue.pool.free == 5


def test_cancelled_ones_leave_at_once() -> None:
    queue = make()
    one, two = ask(1, 30), ask(2, 3, first=100)
    queue.add(one)
    queue.add(two)
    go(queue)
    queue.remove(one)
    queue.remove(two)
    assert queue.idle and queue.pool.free == queue.pool.blocks
    assert queue.plan() == []


def test_a_pass_that_was_broken_off_is_planned_again() -> None:
    queue = make(tokens_per_pass=100)
    one, two = ask(1, 10), ask(2, 10)
    queue.add(one)
    queue.add(two)
    work = queue.plan()
    assert work == [Work(one, 10), Work(two, 2)]
    queue.undo(work)
    assert list(queue.waiting) == [one, two] and queue.pool.free == 16
    assert queue.plan() == [Work(one, 10), Work(two, 2)]
