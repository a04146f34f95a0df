"""What is mutated, and which tests are responsible for it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LUA", "PYTHON", "files", "tests_for"]

_WORDS = "unit/test_policy_words.py"
_CLASSIFY = ("unit/test_classify.py", "unit/test_classify_")
#: File below the package, or the folder it is in → parts of the test ids that are responsible.
PYTHON: dict[str, tuple[str, ...]] = {
    "policy/lease.py": (
        "unit/test_lease",
        "unit/test_suspicion.py",
        "test_stores.py::TestMemoryStore",
        "test_store_machine.py::TestMemoryStore",
        "unit/test_guard.py",
        _WORDS,
    ),
    "policy/verdict.py": (_WORDS, "unit/test_verdict.py", "unit/test_guard.py", "unit/test_running.py"),
    "policy/progress.py": (_WORDS, "unit/test_progress.py", "unit/test_verdict.py"),
    "policy/suspicion.py": (_WORDS, "unit/test_suspicion.py"),
    "policy/leaks.py": (_WORDS, "unit/test_leaks.py"),
    "policy/overrun.py": (_WORDS, "unit/test_overrun.py"),
    "policy/window.py": ("unit/test_window.py", "unit/test_budget.py"),
    "policy/budget.py": ("unit/test_budget.py", "unit/test_breaker.py"),
    "policy/breaker.py": ("unit/test_breaker.py", "unit/test_resource.py"),
    "policy/rate.py": ("unit/test_rate.py",),
    "policy/resource.py": ("unit/test_resource.py",),
    "policy/retry.py": (_WORDS, "unit/test_retry", "unit/test_verdict.py"),
    "policy/delivery.py": (_WORDS, "unit/test_delivery_forms.py", "unit/test_delivery.py", "unit/test_guard.py", "unit/test_running.py"),
    "policy/deadline.py": ("unit/test_deadline.py", "unit/test_guarded_request.py"),
    "policy/deadletter.py": (_WORDS, "unit/test_deadletter.py", "unit/test_dead_letters_letter.py"),
    "policy/classification.py": (_WORDS, *_CLASSIFY),
    "policy/classify.py": _CLASSIFY,
    "policy/matches.py": _CLASSIFY,
    "policy/rules/": _CLASSIFY,
    "policy/key.py": ("unit/test_key", "unit/test_beat.py"),
    "policy/canonical.py": ("unit/test_key",),
    "policy/refusal.py": ("unit/test_refusal.py", "unit/test_guard.py", "unit/test_running.py", "unit/test_verdict.py"),
}
_STORE = ("test_stores.py::TestRedisStore", "test_store_machine.py::TestRedisStore", "contract/test_redis_scripts.py")
_RESOURCE = ("contract/test_resource_script.py", "test_stores.py::TestResourcesInRedis")
_TAKE = ("integration/test_take_script.py",)
_DELAY = (
    "test_brokers.py::test_the_pump_says_how_many_it_moved_and_when_to_come_again[redis]",
    "test_brokers.py::test_a_message_that_cannot_be_moved_holds_up_no_other[redis]",
    "test_brokers.py::test_all_keys_carry_the_prefix_of_the_transport[redis]",
    "integration/test_delay_scripts.py",
)
LUA: dict[str, tuple[str, ...]] = {
    **{f"stores/redis/{name}.lua": _RESOURCE for name in ("resource", "ask", "tell", "enter", "leave", "hold", "force", "state")},
    "stores/redis/": _STORE,
    "worker/": _TAKE,
    "integration/brokers/": _DELAY,
}


def files(package: Path, table: dict[str, tuple[str, ...]], ending: str) -> list[str]:
    """Return the files of a table that are there."""
    found: list[str] = []
    for name in table:
        found += [name] if not name.endswith("/") else [f"{name}{path.name}" for path in sorted((package / name).glob(f"*{ending}"))]
    return [name for name in dict.fromkeys(found) if (package / name).exists()]


def tests_for(file: str) -> tuple[str, ...]:
    """Return parts of the ids of the tests that are responsible for a file."""
    table = PYTHON if file.endswith(".py") else LUA
    return table[file] if file in table else table[f"{file.rpartition('/')[0]}/"]
