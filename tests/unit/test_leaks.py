"""A task is named when several of its runs left something that still lives, and not for what a library warms up."""

from __future__ import annotations

import random

import pytest

from celery_guardrails.policy.leaks import CHILDREN, FILES, MEMORY, THREADS, Leak, LeakWatch, Snapshot, Suspect

MIB = 2**20


def files(*numbers: int) -> Snapshot:
    return Snapshot(files=frozenset(numbers))


class Process:
    """Descriptors of one process, and a watch that looks at them."""

    def __init__(self, **options: int) -> None:
        self.watch = LeakWatch(**options)
        self.open: dict[int, str] = {0: "in", 1: "out", 2: "err"}
        self.opened = 0

    def lowest(self) -> int:
        return next(number for number in range(1000) if number not in self.open)

    def run(self, task: str, opens: int = 0, closes: tuple[int, ...] = ()) -> list:
        """Run a task that closes descriptors and leaves others; return what is found, and tell of it."""
        before = files(*self.open)
        self.watch.ran(task)
        for number in closes:
            del self.open[number]
        for _ in range(opens):
            self.opened += 1
            self.open[self.lowest()] = f"file {self.opened}"
        for kind, numbers in self.watch.new(before, files(*self.open)):
            self.watch.left(task, kind, [Suspect(number, self.open[number], self.open[number]) for number in numbers])
        found = self.watch.leaks(task, {FILES: self.open})
        for leak in found:
            self.watch.told(task, leak)
        return [(leak.kind, leak.amount, leak.runs) for leak in found]


def test_a_task_that_leaves_one_file_a_run_is_named_at_the_fifth_and_again_at_twice_as_many():
    process = Process()
    told = [process.run("leaky", opens=1) for _ in range(20)]
    assert [number for number, found in enumerate(told, 1) if found] == [5, 10, 20]
    assert told[4] == [(FILES, 5, 5)]


@pytest.mark.parametrize(
    ("every", "named"), [((1, 1, 0, 1, 1, 0, 1), 7), ((1, 1, 0, 1, 1, 0, 0), 33), ((1, 0), 39), ((1, 0, 0, 0, 0, 0, 0, 0, 0, 0), 191)]
)
def test_nearly_all_of_the_last_runs_must_have_left_something_or_twenty_in_all(every, named):
    process = Process()
    told = [process.run("leaky", opens=every[number % len(every)]) for number in range(named + 30)]
    assert next(number for number, found in enumerate(told, 1) if found) == named


def test_branches_that_warm_up_one_after_another_are_no_leak():
    process = Process()
    opens = {1: 2, 2: 4, 3: 1, 20: 3, 21: 1, 22: 1, 23: 1, 60: 6, 61: 1, 80: 1, 100: 2}
    assert [process.run("innocent", opens=opens.get(number, 0)) for number in range(1, 200)] == [[]] * 199


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_how_many_runs_it_takes_is_a_setting(runs):
    process = Process(runs=runs)
    told = [process.run("leaky", opens=1) for _ in range(runs)]
    assert told == [[]] * (runs - 1) + [[(FILES, runs, runs)]]


@pytest.mark.parametrize("opened", [1, 50])
def test_what_a_library_opens_at_first_use_is_no_leak_however_much_it_is(opened):
    process = Process()
    assert process.run("innocent", opens=opened) == []
    assert [process.run("innocent") for _ in range(100)] == [[]] * 100


def test_a_connection_that_is_made_anew_with_each_run_is_no_leak():
    process = Process()
    process.run("innocent", opens=1)
    assert [process.run("innocent", opens=1, closes=(3,)) for _ in range(50)] == [[]] * 50


def test_what_a_run_leaves_and_the_next_one_clears_away_is_no_leak():
    process = Process()
    told = []
    for _ in range(20):
        told += process.run("innocent", opens=1)
        del process.open[3]  # between the runs: a thread has ended, garbage was collected
    assert told == []


def test_a_file_that_is_opened_again_under_the_same_number_does_not_count_twice():
    watch = LeakWatch()
    for _ in range(9):  # new after each run, so it was not there before it: the earlier one has gone
        watch.ran("innocent")
        watch.left("innocent", FILES, [Suspect(3, "/var/log/shop.log", "/var/log/shop.log")])
        assert watch.leaks("innocent", {FILES: {3: "/var/log/shop.log"}}) == []


def test_what_has_gone_meanwhile_is_forgotten():
    watch = LeakWatch()
    for number in range(3, 13):
        watch.ran("innocent")
        watch.left("innocent", FILES, [Suspect(number, f"file {number}", "file")])
        assert watch.leaks("innocent", {FILES: {number: f"file {number}"}}) == []
    assert watch.suspects("innocent") == {FILES: [12]}


def test_another_thing_by_the_same_number_is_not_what_was_left():
    watch = LeakWatch(runs=3)
    for number in (3, 4, 5):
        watch.ran("innocent")
        watch.left("innocent", FILES, [Suspect(number, "mine", "file")])
    assert watch.leaks("innocent", {FILES: {3: "mine", 4: "another's", 5: "mine"}}) == []


def test_a_task_is_not_named_for_what_another_leaves():
    process = Process()
    told = {task: [] for task in ("leaky", "innocent")}
    for _ in range(10):
        told["leaky"] += process.run("leaky", opens=1)
        told["innocent"] += process.run("innocent")
    assert told["innocent"] == []
    assert told["leaky"][0] == (FILES, 5, 5)


def test_what_the_system_does_not_show_is_not_compared():
    before, after = Snapshot(threads=frozenset({1})), Snapshot(threads=frozenset({1, 2}), files=frozenset({7}))
    assert list(LeakWatch.new(before, after)) == [(THREADS, [2])]


def test_of_what_is_new_only_as_much_is_left_as_there_is_more():
    assert list(LeakWatch.new(files(0, 1, 2, 8), files(0, 1, 2, 20, 21))) == [(FILES, [21])], "8 was closed and opened again as 20"
    assert list(LeakWatch.new(files(0, 1, 2, 8), files(0, 1, 2, 20))) == []


def test_all_kinds_are_compared():
    before = Snapshot(frozenset({1}), frozenset(), frozenset({0, 1, 2}))
    after = Snapshot(frozenset({1, 5}), frozenset({77}), frozenset({0, 1, 2, 3}))
    assert list(LeakWatch.new(before, after)) == [(THREADS, [5]), (CHILDREN, [77]), (FILES, [3])]


def test_the_last_few_are_named():
    watch = LeakWatch(runs=2)
    marks = {}
    for number in range(8):
        marks[number] = ""
        watch.ran("leaky")
        watch.left("leaky", THREADS, [Suspect(number, "", f"Thread-{number}")])
    (leak,) = watch.leaks("leaky", {THREADS: marks})
    assert leak.names == ("Thread-7", "Thread-6", "Thread-5", "Thread-4", "Thread-3")
    assert str(leak) == "threads: 8 of 8 runs in this process still live (Thread-7, Thread-6, Thread-5, Thread-4, Thread-3, …)"


def test_where_all_are_named_no_more_are_hinted_at():
    assert str(Leak(FILES, 2, 2, ("a", "b"))) == "open files: 2 of 2 runs in this process still live (a, b)"


def test_what_is_remembered_has_a_limit():
    watch = LeakWatch()
    for run in [range(250), *([number] for number in range(250, 260))]:
        watch.ran("leaky")
        watch.left("leaky", FILES, [Suspect(number, "", "file") for number in run])
    assert len(watch.suspects("leaky")[FILES]) == 256


# -- memory -----------------------------------------------------------------------------------------------------------


class Heap:
    """Memory of one process, and a watch that looks at it."""

    def __init__(self) -> None:
        self.watch = LeakWatch()
        self.size = 100 * MIB

    def run(self, task: str, keeps: int) -> list:
        before = self.size
        self.size += keeps
        self.watch.grew(task, before, self.size)
        found = self.watch.leaks(task, {})
        for leak in found:
            self.watch.told(task, leak)
        return [leak.amount for leak in found]


def test_a_task_whose_every_run_keeps_memory_is_named_when_it_is_much():
    heap = Heap()
    told = [heap.run("leaky", MIB) for _ in range(300)]
    at = [number for number, found in enumerate(told, 1) if found]
    assert at == [12 + 64, 12 + 128, 12 + 256], "after the start-up, and again at twice as much"
    assert told[at[0] - 1] == [64 * MIB]


def test_its_words_say_how_much():
    heap = Heap()
    for _ in range(75):
        heap.run("leaky", MIB)
    heap.watch.grew("leaky", heap.size, heap.size + MIB)
    (leak,) = heap.watch.leaks("leaky", {})
    assert str(leak) == "memory: 64 MiB added by 64 runs in this process"
    assert leak.kind == MEMORY


def test_a_cache_that_fills_at_the_start_is_no_leak():
    heap = Heap()
    told = [heap.run("innocent", 200 * MIB if number < 8 else 0) for number in range(100)]
    assert told == [[]] * 100


def test_memory_that_the_next_run_gives_back_is_no_leak():
    heap = Heap()
    assert [heap.run("innocent", 100 * MIB if number % 2 else -100 * MIB) for number in range(100)] == [[]] * 100


@pytest.mark.parametrize("seed", range(40))
def test_what_an_allocator_keeps_of_inputs_of_random_size_is_no_leak(seed):
    chance = random.Random(seed)
    heap, most, told = Heap(), 0, []
    for _ in range(500):
        needs = int(chance.expovariate(1 / (100 * MIB)))
        told += heap.run("innocent", max(0, needs - most))
        most = max(most, needs)
    assert told == []


def test_a_leak_of_one_task_is_not_put_down_to_another():
    heap = Heap()
    told = {"leaky": [], "innocent": []}
    for _ in range(200):
        told["leaky"] += heap.run("leaky", MIB)
        told["innocent"] += heap.run("innocent", 4096)
    assert told["leaky"]
    assert told["innocent"] == []


@pytest.mark.parametrize(("records", "named"), [(6, True), (5, False)])
def test_six_of_eight_runs_must_end_with_more_than_ever(records, named):
    heap = Heap()
    told = []
    for number in range(8 * 12):
        told += heap.run("task", 2 * MIB if number % 8 < records else -MIB if number % 8 == 7 else 0)
    assert bool(told) is named


def test_only_what_is_above_the_highest_so_far_is_counted():
    heap = Heap()
    told = []
    for number in range(13 * 8):
        # 7 MiB up, one down, and the next one up is not a record: 6 MiB in 8 runs
        told += heap.run("leaky", -MIB if number % 8 == 7 else MIB)
    assert told == [64 * MIB]
    assert heap.size - 100 * MIB == 78 * MIB


def test_it_says_how_many_runs_have_added_to_it():
    heap = Heap()
    for number in range(12 + 80):
        heap.watch.grew("leaky", heap.size, heap.size + (MIB if number % 8 else 0))
        heap.size += MIB if number % 8 else 0
    (leak,) = heap.watch.leaks("leaky", {})
    assert leak.runs == leak.amount // MIB == 70


def test_memory_that_is_given_back_between_the_runs_is_no_leak():
    heap = Heap()
    told = []
    for _ in range(100):
        told += heap.run("innocent", 10 * MIB)
        heap.size -= 10 * MIB
    assert told == []


def test_what_a_collection_of_garbage_gives_back_is_not_counted():
    heap = Heap()
    for _ in range(12 + 60):
        heap.run("leaky", MIB)
    heap.watch.freed("leaky", 10 * MIB)
    heap.size -= 10 * MIB
    assert [heap.run("leaky", MIB) for _ in range(14)] == [[]] * 13 + [[64 * MIB]]


def test_a_collection_of_garbage_that_freed_nothing_changes_nothing():
    heap = Heap()
    for _ in range(12 + 63):
        heap.run("leaky", MIB)
    heap.watch.freed("leaky", -MIB)
    heap.watch.freed("leaky", 0)
    heap.watch.freed("unknown", MIB)
    assert heap.run("leaky", 4096) == []
    assert heap.run("leaky", MIB) != []


def test_it_says_when_the_memory_is_suspect():
    heap = Heap()
    answers = [heap.watch.grew("leaky", MIB * number, MIB * (number + 1)) for number in range(12 + 64)]
    assert answers == [False] * 75 + [True]


def test_a_byte_more_than_ever_is_a_record_and_the_sixth_after_the_start_up_names_the_task():
    watch = LeakWatch(memory=1)
    assert [watch.grew("leaky", number, number + 1) for number in range(12 + 6)] == [False] * 17 + [True]
    watch.freed("leaky", 5)
    assert [leak.amount for leak in watch.leaks("leaky", {})] == [1], "who sets the limit at a byte is told of a byte"


def test_a_collection_of_garbage_after_which_there_is_more_changes_not_a_byte():
    watch = LeakWatch()
    for number in range(12 + 64):
        watch.grew("leaky", MIB * number, MIB * (number + 1))
    watch.freed("leaky", -MIB)
    assert [leak.amount for leak in watch.leaks("leaky", {})] == [64 * MIB]


def test_memory_that_the_system_does_not_show_is_not_compared():
    watch = LeakWatch(memory=1)
    assert [watch.grew("task", None, MIB), watch.grew("task", MIB, None)] == [False, False]
    assert watch.leaks("task", {}) == []
