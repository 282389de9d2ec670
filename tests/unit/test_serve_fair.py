"""Turns of clients, fair in tokens: random clients against what the order must keep, and a model of an overload."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import pytest

from pipelines.serve.fair import FairQueue, OverloadedError, Speed

QUANTUM = 256
BUDGET = 4 * QUANTUM


class Model:
    """Batches of BUDGET tokens of what waits, as the batcher takes them, and what each client was served."""

    def __init__(self) -> None:
        self.queue: FairQueue[list[int]] = FairQueue(QUANTUM)
        self.served: Counter[str | None] = Counter()

    def push(self, client: str | None, windows: list[int]) -> int:
        return self.queue.push(client, windows, sum(windows))

    def batch(self) -> list[tuple[int, int]]:
        """Take a batch; return the number of the request of each window, and its tokens."""
        room = BUDGET
        taken: list[tuple[int, int]] = []
        for entry in self.queue.turns():
            windows = entry.item
            if windows[0] > room and taken:
                continue
            turn = self.queue.credit(entry)
            while windows and ((turn > 0 and windows[0] <= room) or not taken):
                tokens = windows.pop(0)
                taken.append((entry.number, tokens))
                turn -= tokens
                room -= tokens
                self.served[entry.client] += tokens
                self.queue.take(entry, tokens)
            if room <= 0:
                break
        return taken


def random_windows(rng: random.Random, most: int = 8 * BUDGET) -> list[int]:
    longest = min(rng.choice([20, 100, QUANTUM, BUDGET, 8 * BUDGET]), most)
    return [rng.randint(1, longest) for _ in range(rng.choice([1, 1, 3, 40]))]


@pytest.mark.parametrize("largest", [QUANTUM, 8 * BUDGET])
@pytest.mark.parametrize("seed", range(20))
def test_random_clients(seed: int, largest: int) -> None:
    """Each batch has something while something waits; parts keep their order; who always waits gets an equal share."""
    rng = random.Random(seed)
    model = Model()
    clients = [f"client {i}" for i in range(rng.randint(2, 12))]
    weights = [rng.choice([1, 1, 30]) for _ in clients]
    expected: dict[int, list[int]] = {}
    found: dict[int, list[int]] = defaultdict(list)
    owner: dict[int, str] = {}
    backlogged_from: dict[
        str, Counter[str | None]
    ] = {}  # what all were served when it began to wait

    for _ in range(150):
        for _ in range(rng.choice([0, 0, 1, 5])):
            client = rng.choices(clients, weights)[0]
            windows = random_windows(rng, largest)
            number = model.push(client, list(windows))
            expected[number] = windows
            owner[number] = client
            backlogged_from.setdefault(client, model.served.copy())
        waiting = len(model.queue)
        batch = model.batch()
        assert bool(batch) == (waiting > 0)
        for number, tokens in batch:
            found[number].append(tokens)
        still_waiting = {owner[number] for number in expected if found[number] != expected[number]}
        for client in set(backlogged_from) - still_waiting:
            del backlogged_from[client]
        for one, other in combinations(backlogged_from, 2):
            both_from = backlogged_from[one] | backlogged_from[other]  # the later of both
            gained = [model.served[each] - both_from[each] for each in (one, other)]
            assert abs(gained[0] - gained[1]) <= 2 * (QUANTUM + largest + BUDGET)
    while model.queue:
        for number, tokens in model.batch():
            found[number].append(tokens)
    assert dict(found) == expected
    assert model.queue.backlog == 0
    assert model.batch() == []
    assert not model.queue._clients


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("others", [1, 2, 5, 20])
def test_a_short_request_waits_for_a_batch_of_each_other_client_at_most(
    seed: int, others: int
) -> None:
    """However many requests the others have, of any size, and whoever of them was served before."""
    rng = random.Random(seed)
    model = Model()

    def refill() -> None:
        for i in range(others):
            while model.queue.backlog < 1 << 20 and rng.random() < 0.9:
                model.push(f"other {i}", random_windows(rng) * 3)

    refill()
    for _ in range(rng.randint(0, 40)):
        model.batch()
        refill()
    number = model.push("new", [rng.randint(1, QUANTUM)])
    for _ in range(others + 1):
        if number in dict(model.batch()):
            break
        refill()
    else:
        raise AssertionError(f"it still waits after {others + 1} batches")


def test_a_client_that_took_more_waits_until_it_is_paid() -> None:
    model = Model()
    for _ in range(50):
        model.push("long", [BUDGET * 2])
    for _ in range(2000):
        model.push("short", [16])
    batches = [model.batch() for _ in range(20)]
    assert model.served["long"] == pytest.approx(model.served["short"], abs=2 * BUDGET)
    assert [len(batch) for batch in batches[:3]] == [1, 64, 64]


def test_a_long_request_is_not_passed_for_ever() -> None:
    model = Model()
    for _ in range(50):
        model.push(None, [100])
    long = model.push(None, [60] * 20)
    done = 0
    while long not in dict(model.batch()):
        done += 1
        model.push(None, [100])
        assert done < 10
        for _ in range(9):
            model.push(None, [100])


def test_what_is_removed_leaves_nothing_behind() -> None:
    queue: FairQueue[str] = FairQueue(QUANTUM)
    numbers = [queue.push(f"client {i % 7}", "item", 10**6) for i in range(100)]
    next(queue.turns())
    for i, number in enumerate(numbers):
        entry = queue.find(f"client {i % 7}", number)
        assert entry
        queue.remove(entry)
        assert queue.find(f"client {i % 7}", number) is None
    assert (len(queue), queue.backlog) == (0, 0)
    assert list(queue.turns()) == []
    assert not queue._clients
    assert not queue._round


class TestSpeed:
    def test_it_is_that_of_late(self) -> None:
        speed = Speed()
        assert speed.seconds(1000, 0.0) == 0.0
        for i in range(100):
            speed.record(100, i, i + 1)
        assert speed.seconds(1000, 100) == pytest.approx(10)
        for i in range(100, 130):
            speed.record(200, i, i + 1)
        assert speed.seconds(1000, 130) == pytest.approx(5, rel=0.06)

    def test_it_is_forgotten(self) -> None:
        speed = Speed()
        speed.record(100, 0, 1)
        assert speed.seconds(1000, 1) == pytest.approx(10)
        assert speed.seconds(1000, 60) == 0.0

    def test_threads_beside_each_other_count_once(self) -> None:
        speed = Speed()
        speed.record(100, 0, 1)
        for i in range(1, 50):
            speed.record(100, i - 1, i + 1)
        assert speed.seconds(1000, 50) == pytest.approx(10)


def overload(seed: int) -> tuple[float, float]:
    """A model for 5 minutes, asked for more than it can; return the tokens that it ran for requests that are over, and
    those of answers that came in time.
    """
    rng = random.Random(seed)
    queue: FairQueue[list[float]] = FairQueue(QUANTUM)
    speed = Speed()
    rate = 1000.0
    limit_s = 60.0
    clients = [f"client {i}" for i in range(rng.choice([1, 2, 5, 30]))]
    sizes = [rng.choice([100, 3000, int(rate), int(rate * 10), int(rate * 40)]) for _ in clients]
    # By client the requests that it has at a time: it asks again at once when one is over.
    at_a_time = [rng.choice([1, 4, 30]) for _ in clients]
    begins_s = [rng.uniform(0, 100) for _ in clients]
    now = 0.0
    ran = useful = 0.0
    under_way: Counter[str] = Counter()
    retry_at: dict[str, float] = {}

    def ask(client: str, size: int) -> bool:
        try:
            speed.check(queue.cost_until(client, size), now, now + limit_s)
        except OverloadedError as error:
            retry_at[client] = now + error.retry_after_s
            return False
        queue.push(client, [now + limit_s, size], size)
        return True

    while now < 300:
        for client, size, most, begins in zip(clients, sizes, at_a_time, begins_s, strict=True):
            while (
                now >= max(begins, retry_at.get(client, 0))
                and under_way[client] < most
                and ask(client, rng.randint(size // 2 + 1, size))
            ):
                under_way[client] += 1
        room = BUDGET
        batch: list[tuple[Any, int]] = []
        for entry in queue.turns():
            deadline, _ = entry.item
            try:
                speed.check(queue.cost_of_next(entry), now, deadline, promised=1.0)
            except OverloadedError:
                under_way[entry.client or ""] -= 1
                ran += entry.item[1] - entry.cost
                queue.remove(entry)
                continue
            tokens = min(room, queue.credit(entry), entry.cost)
            queue.take(entry, tokens)
            batch.append((entry, tokens))
            room -= tokens
            if room <= 0:
                break
        is_full = len(queue) > 0
        tokens = sum(tokens for _, tokens in batch)
        began = now
        now += tokens / rate * rng.uniform(0.9, 1.1) if batch else 0.1
        if is_full:
            speed.record(tokens, began, now)
        for entry, _ in batch:
            if entry.cost > 0 or entry.item[1] == 0:
                continue
            deadline, size = entry.item
            entry.item[1] = 0
            under_way[entry.client] -= 1
            ran += size
            if now <= deadline:
                useful += size
    return ran, useful


@pytest.mark.parametrize("seed", range(8))
def test_under_overload_most_of_the_work_is_for_answers_in_time(seed: int) -> None:
    ran, useful = overload(seed)
    assert useful >= 0.9 * ran, f"{useful / ran:.2f}"
