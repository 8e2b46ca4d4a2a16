"""Reading ahead and writing behind: order, bounds and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from cgrseg.inference.background import BackgroundWriter, Budget, map_in_threads, read_ahead


def test_items_come_in_order_and_are_read_in_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(50):
            threads.add(threading.get_ident())
            yield number

    assert list(read_ahead(items(), 3)) == list(range(50))
    assert threads and threading.get_ident() not in threads


def test_no_more_is_read_ahead_than_agreed() -> None:
    taken = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    reader = read_ahead(endless(), 2)
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.3)
    assert len(taken) <= 6  # three used, two waiting, one in the reader's hand
    before = threading.active_count()
    reader.close()
    assert threading.active_count() == before - 1


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    reader = read_ahead(items(), 4)
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)


def test_jobs_run_beside_the_caller_and_all_are_done_on_leaving() -> None:
    gate, done = threading.Event(), []

    def job(number: int) -> None:
        gate.wait(10)
        done.append(number)

    with BackgroundWriter(threads=1, waiting=10) as behind:
        for number in range(5):
            behind.add(job, number)
        assert done == []  # the caller did not wait
        gate.set()
    assert done == [0, 1, 2, 3, 4]


def test_waiting_jobs_are_bounded() -> None:
    gate, begun = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        gate.wait(10)

    with BackgroundWriter(threads=1, waiting=2) as behind:
        behind.add(job)
        behind.add(job)
        begun.wait(10)
        blocked = threading.Thread(target=behind.add, args=(job,))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        gate.set()
        blocked.join(10)
        assert not blocked.is_alive()


def test_an_error_of_a_job_ends_the_work() -> None:
    def job() -> None:
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"), BackgroundWriter() as behind:
        behind.add(job)
    with pytest.raises(ValueError, match="disk full"), BackgroundWriter(waiting=1) as behind:
        for _ in range(3):
            behind.add(job)
        pytest.fail("the second job should have told of the first")


def test_threads_map_items_in_order_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def job(number: int) -> int:
        meeting.wait(10)  # three threads, or it breaks
        return -number

    assert list(map_in_threads(job, range(9), 3)) == [-number for number in range(9)]


def test_an_error_of_the_items_comes_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("broken")

    found = map_in_threads(lambda number: number, items(), 4)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_closing_a_map_drops_jobs_that_have_not_begun() -> None:
    begun = []
    gate = threading.Event()

    def job(number: int) -> int:
        begun.append(number)
        if number:
            gate.wait(10)
        return number

    found = map_in_threads(job, range(100), 2)
    assert next(found) == 0
    threading.Timer(0.2, gate.set).start()
    found.close()
    assert len(begun) <= 4
    assert not [one for one in threading.enumerate() if one.name.startswith("label")]


def test_threads_share_a_budget_and_too_large_a_wish_is_granted_alone() -> None:
    budget, held, most = Budget(10), [0], [0]
    lock = threading.Lock()

    def job(amount: int) -> None:
        with budget.hold(amount):
            with lock:
                held[0] += amount
                most[0] = max(most[0], held[0])
                assert held[0] <= 10 or held[0] == amount
            time.sleep(0.01)
            with lock:
                held[0] -= amount

    list(map_in_threads(job, [4, 4, 4, 25, 3, 6, 9, 1, 5], 6))
    assert most[0] == 25 and held[0] == 0
