"""What pool processes report to a worker's main process is heard, whatever happens in the middle of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import time

import pytest
from billiard.einfo import ExceptionInfo
from kombu.asynchronous import Hub

from celery_guardrails.worker import result_pipes
from celery_guardrails.worker.result_pipes import SoundAsynPool
from tests.support import eventually

#: Bytes; a pipe holds 64 KiB, so a process cannot write a result of this size while nobody reads.
LARGE = 1 << 20
#: Bytes that are read at a time.
PART = 1 << 15


def large(first):
    return first + "x" * LARGE


def endless():
    """A result that its process cannot finish writing: nobody reads it."""
    return "x" * LARGE


def late():
    """The same, when it has been accepted for a while."""
    time.sleep(1)
    return "x" * LARGE


class Loop:
    """A pool and its event loop, as a worker has them."""

    def __init__(self):
        self.pool = SoundAsynPool(1, threads=False)
        self.hub = Hub()
        self.results = []
        self.begin()

    def begin(self):
        self.pool.register_with_event_loop(self.hub)
        self._turns = self.hub.create_loop()

    def lose_connection(self):
        """What Celery does with its event loop then."""
        self.hub.reset()
        self.begin()

    def call(self, function, *args):
        self.pool.apply_async(function, args, callback=self.results.append, error_callback=self.results.append)

    def turn(self):
        next(self._turns)

    def until(self, condition):
        deadline = time.monotonic() + 60
        self.hub.call_repeatedly(0.1, lambda: None)
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    @property
    def torn(self):
        return any(inbox.torn for inbox in self.pool._result_handler._inboxes.values())

    def process(self):
        (process,) = self.pool._pool
        return process


@pytest.fixture
def loop(monkeypatch):
    """Whose results come in small parts, however fast they are written."""
    made = Loop()
    read, empty = os.read, itertools.cycle((False, True))

    def read_a_part(fd, size):
        if size > PART and next(empty):
            raise BlockingIOError
        return read(fd, min(size, PART))

    monkeypatch.setattr(result_pipes.os, "read", read_a_part)
    yield made
    for process in made.pool._pool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def test_a_result_that_was_coming_when_the_connection_was_lost_is_read_to_its_end(loop):
    loop.call(large, "a")
    loop.until(lambda: loop.torn)
    loop.lose_connection()
    assert loop.torn, "it was in the middle of it"
    loop.call(large, "b")
    loop.until(lambda: len(loop.results) == 2)
    assert loop.results == [large("a"), large("b")]


def test_a_process_killed_in_the_middle_of_a_result_leaves_nothing_in_the_pipe_of_the_next(loop):
    loop.call(endless)
    loop.until(lambda: loop.torn)
    killed = loop.process()
    os.kill(killed.pid, signal.SIGKILL)
    loop.until(lambda: killed not in loop.pool._pool and loop.pool._pool)
    loop.call(large, "b")
    loop.until(lambda: large("b") in loop.results)
    assert loop.process().outq is not killed.outq
    assert not loop.torn


def test_a_process_killed_between_two_results_leaves_its_pipe_to_the_next(loop):
    loop.call(large, "a")
    loop.until(lambda: loop.results)
    killed = loop.process()
    os.kill(killed.pid, signal.SIGKILL)
    loop.until(lambda: killed not in loop.pool._pool and loop.pool._pool)
    assert loop.process().outq is killed.outq
    loop.call(large, "b")
    loop.until(lambda: large("b") in loop.results)


def test_a_process_whose_end_was_heard_before_it_could_be_waited_for_does_not_keep_a_worker_from_connecting_again(loop):
    loop.pool._untrack_child_process(loop.process(), loop.hub)
    loop.lose_connection()
    killed = loop.process()
    os.kill(killed.pid, signal.SIGKILL)
    loop.until(lambda: killed not in loop.pool._pool and loop.pool._pool)
    loop.call(large, "b")
    loop.until(lambda: large("b") in loop.results)


def test_pipes_of_a_process_whose_end_was_not_dealt_with_to_its_end_are_replaced(loop):
    lost = loop.process()
    kill(lost)
    loop.pool._pool.remove(lost)  # as an error in the middle of it leaves them
    loop.pool._poolctrl.pop(lost.pid)
    loop.pool.maintain_pool()
    assert loop.process().outq is not lost.outq
    loop.call(large, "b")
    loop.until(lambda: large("b") in loop.results)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not process._is_alive(), 30)


def test_a_worker_that_ends_does_not_wait_for_the_rest_of_a_result_whose_process_was_killed(loop):
    accepted = []
    loop.pool.apply_async(late, accept_callback=lambda *_: accepted.append(True))
    loop.until(lambda: accepted)
    assert loop.process().outq._reader.poll(60), "it writes, and nobody has read"
    kill(loop.process())
    loop.pool.close()
    loop.pool.join()  # for ever, in Celery


def test_a_worker_that_ends_after_it_has_lost_its_connection_does_not_wait_for_what_cannot_come(loop):
    loop.call(endless)
    loop.until(lambda: loop.torn)
    loop.lose_connection()
    kill(loop.process())
    loop.pool.close()
    loop.pool.join()  # for ever, in Celery


def test_a_worker_that_ends_takes_the_result_that_is_just_coming(loop):
    loop.call(large, "a")
    loop.until(lambda: loop.torn)
    loop.pool.close()
    loop.pool.join()
    assert loop.results == [large("a")]


def test_what_is_told_of_a_failed_attempt_fits_into_one_write_and_says_all_that_celery_logs():
    def deep(levels):
        if levels:
            deep(levels - 1)
        else:
            raise ValueError("deep down")

    def fails():
        try:
            deep(150)
        except ValueError:
            return ExceptionInfo(), "internal", 0.1, "text"

    def told(answer):
        return pickle.dumps((2, (1, None, (True, answer), 5)), protocol=pickle.HIGHEST_PROTOCOL)

    plain, light = fails(), result_pipes._light(fails)()
    assert len(told(light)) < 16384 < len(told(plain)), "billiard/connection.py writes up to 16 KiB at once"
    assert "deep down" in light[0].traceback
    assert light[0].traceback == plain[0].traceback
    assert repr(light[0].exception) == repr(plain[0].exception)


def test_the_answer_of_a_task_that_succeeded_is_left_as_it_is():
    answer = ("value", None, 0.1, "'value'")
    assert result_pipes._light(lambda: answer)() is answer


def given(loop):
    """Wait until a job is in the pipe of the only process, which has not taken it out."""
    loop.call(large, "up")
    loop.until(lambda: loop.results)
    loop.results.clear()
    process = loop.process()
    os.kill(process.pid, signal.SIGSTOP)
    loop.call(large, "a")
    (job,) = loop.pool._cache.values()
    loop.until(lambda: not loop.pool._active_writers and job._write_to is process)
    return process, job


def test_what_lies_in_a_pipe_when_the_connection_is_lost_is_still_heard_of(loop):
    process, job = given(loop)
    loop.pool.flush()
    assert not job.accepted()
    os.kill(process.pid, signal.SIGCONT)
    loop.lose_connection()
    loop.until(lambda: loop.results)
    assert loop.results == [large("a")]
    assert loop.pool._cache == {}


def test_what_runs_when_the_connection_is_lost_is_still_heard_of(loop):
    loop.call(late)
    (job,) = loop.pool._cache.values()
    loop.until(job.accepted)
    loop.pool.flush()
    loop.lose_connection()
    loop.until(lambda: loop.results)
    assert loop.results == [late()]
    assert loop.pool._cache == {}


def test_what_lay_in_the_pipe_of_a_process_that_died_when_the_connection_was_lost_is_forgotten(loop):
    process, _ = given(loop)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    loop.pool.flush()
    assert loop.pool._cache == {}, "its message comes again"
    loop.until(lambda: process not in loop.pool._pool and loop.pool._pool)
    loop.call(large, "b")
    loop.until(lambda: loop.results)
    assert loop.results == [large("b")]


def test_what_was_put_back_when_its_process_died_is_forgotten_when_the_connection_is_lost(loop):
    process, job = given(loop)
    loop.pool._put_back(job)  # it still names the process, or the next one that has its pipes
    loop.pool.flush()
    assert loop.pool._cache == {}, "no process was given it: nothing would ever tell of its end"
    os.kill(process.pid, signal.SIGCONT)


def test_what_has_not_begun_is_forgotten_when_the_worker_stops(loop, monkeypatch):
    process, _ = given(loop)
    monkeypatch.setattr(result_pipes, "is_stopping", lambda: True)
    loop.pool.flush()
    assert loop.pool._cache == {}
    os.kill(process.pid, signal.SIGCONT)
