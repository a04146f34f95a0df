"""The room of a worker's tasks: many inside, or one alone; among threads, and among processes that may be killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_guardrails.integration.solitude import Solitude
from tests.support import eventually

WAIT = 30.0


@pytest.fixture
def room() -> Solitude:
    opened = Solitude()
    opened.open(8)
    return opened


@contextmanager
def inside(room: Solitude, holder: str) -> Iterator[int]:
    """Another process that is inside, as a child of the pool would be."""
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            os.write(said, b"1" if room.enter(holder) else b"0")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"1"
        yield pid
    finally:
        os.close(ready)
        os.close(said)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_worker_of_one_task_at_a_time_has_a_room_that_is_not_shared_until_it_grows() -> None:
    room = Solitude()
    assert not room.opened
    room.open(1)
    assert (room.opened, room.shared()) == (True, False)
    room.share(True)
    assert room.shared()
    room.open(1)
    assert not room.shared()
    room.open(2)
    assert room.shared()


def test_a_child_hears_that_the_pool_has_grown_and_a_quarantine_does_not_change_it(room: Solitude) -> None:
    room.share(False)
    go, gone = os.pipe()
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            os.read(go, 1)
            os.write(said, b"1" if room.shared() else b"0")
        finally:
            os._exit(1)
    room.share(True)
    assert room.alone("a", 0.0)
    room.leave("a")
    os.write(gone, b"1")
    assert os.read(ready, 1) == b"1"
    os.waitpid(pid, 0)
    for end in (go, gone, ready, said):
        os.close(end)


def test_while_the_main_process_is_inside_no_child_is_alone_and_one_that_is_forked_then_knows_it(room: Solitude) -> None:
    """The kernel's lock stays with the process that has it, so a copy of what it knows would lie."""
    assert room.enter("plain1")
    ready, said = os.pipe()
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            os.write(said, b"1" if room.enter("a") and not room.alone("a", 0.0) else b"0")
            os.read(go, 1)
            os.write(said, b"1" if room.alone("a", 0.0) else b"0")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"1"
        room.leave("plain1")
        os.write(gone, b"1")
        assert os.read(ready, 1) == b"1"
        assert not room.enter("plain2")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (go, gone, ready, said):
            os.close(end)
    assert room.leave("a")
    assert room.enter("plain2")


def test_many_are_inside_and_who_wants_to_be_alone_waits_for_all_of_them(room: Solitude) -> None:
    assert room.enter("a")
    assert room.enter("b")
    assert not room.alone("c", 0.0)
    room.leave("a")
    room.leave("b")
    room.leave("c")
    assert room.alone("c", 0.0)
    assert not room.enter("d")
    assert room.leave("c")
    assert room.enter("d")


def test_nobody_comes_in_while_somebody_waits_to_be_alone(room: Solitude) -> None:
    assert room.enter("a")
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(room.alone("b", WAIT)))
    waiting.start()
    eventually(lambda: room.in_quarantine() == "b")
    assert not room.enter("c")
    room.leave("a")
    waiting.join(WAIT)
    assert answers == [True]


def test_who_has_waited_in_vain_is_inside_with_the_others_and_is_still_the_one_in_quarantine(room: Solitude) -> None:
    assert room.enter("a")
    assert not room.alone("b", 0.0)
    assert room.enter("c")
    room.leave("a")
    room.leave("c")
    assert room.in_quarantine() == "b"
    assert not room.leave("a"), "who has left has nothing to say of it"
    assert room.leave("b")
    assert room.in_quarantine() == ""


def test_a_suspect_who_came_in_as_all_do_need_not_wait_for_itself(room: Solitude) -> None:
    assert room.enter("a")
    assert room.alone("a", 0.0)


def test_another_process_inside_keeps_one_from_being_alone_until_it_is_killed(room: Solitude) -> None:
    with inside(room, "a") as pid:
        assert room.enter("b")
        room.leave("b")
        assert not room.alone("c", 0.2)
        room.leave("c")
        os.kill(pid, signal.SIGKILL)
        assert room.alone("c", WAIT)


def test_the_main_process_sees_who_is_alone_in_a_child_and_makes_room_when_it_has_died(room: Solitude) -> None:
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            os.write(said, b"1" if room.enter("a") and room.alone("a", 0.0) else b"0")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"1"
    assert room.in_quarantine() == "a"
    assert not room.enter("b")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not room.enter("b"), "it may still have to be charged"
    assert room.leave("a")
    assert room.enter("b")
    os.close(ready)
    os.close(said)
