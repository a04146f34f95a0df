"""``@guarded_task`` in every form, and the options it refuses. No broker, no worker."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, Task, chain

from celery_guardrails import (
    GuardedTask,
    Guardrails,
    GuardrailsConfigError,
    GuardrailsError,
    PermanentError,
    RetryPolicy,
    current_execution,
    guarded_task,
)
from celery_guardrails.integration.task import GuardMixin
from celery_guardrails.policy.delivery import TRAVEL_HEADER
from tests.support.sent import Sent


@pytest.fixture
def app() -> Celery:
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=True)
    Guardrails(app, store="memory://")
    return app


# -- call forms ---------------------------------------------------------------------------------------------------------


def test_bare(app: Celery) -> None:
    @guarded_task
    def bare(x: int) -> int:
        return x + 1

    assert isinstance(app.tasks[bare.name], GuardMixin)
    assert bare(1) == 2


def test_with_options(app: Celery) -> None:
    @guarded_task(name="forms.options", key="k:{x}", retention=5, rate_limit="10/s")
    def options(x: int) -> int:
        return x

    assert options.name == "forms.options"
    assert options.guard_options.retention == 5
    assert options.rate_limit == "10/s"


def test_with_empty_parentheses(app: Celery) -> None:
    @guarded_task()
    def empty() -> str:
        return "ran"

    assert empty() == "ran"


def test_bound(app: Celery) -> None:
    @guarded_task(bind=True, key="k:{x}")
    def bound(self: Any, x: int) -> tuple[str, int]:
        return self.name, x

    assert bound(3) == (bound.name, 3)
    assert bound.guard_options.identify((3,), {})[0] == "k:3"


def test_on_an_app(app: Celery) -> None:
    @app.task(base=GuardedTask, key="k:{x}", retry=RetryPolicy(max_attempts=2), shared=False)
    def on_app(x: int) -> int:
        return x

    assert on_app.guard_options.retry.max_attempts == 2
    assert callable(on_app.retry)


def test_class_based(app: Celery) -> None:
    class Charge(GuardedTask):
        name = "forms.Charge"
        key = "charge:{order}"
        retry = RetryPolicy(max_attempts=4)
        permanent = (ValueError,)

        def run(self, order: int) -> int:
            return order

    task = app.register_task(Charge())
    assert task.guard_options.retry.max_attempts == 4
    assert task.guard_options.identify((), {"order": 9})[0] == "charge:9"
    assert callable(task.retry)
    assert task(7) == 7


def test_every_task_of_an_app() -> None:
    app = Celery("all", broker="memory://", task_cls="celery_guardrails:GuardedTask", set_as_current=False)

    @app.task(shared=False)
    def some(x: int) -> int:
        return x

    assert isinstance(app.tasks[some.name], GuardMixin)
    assert app.tasks[some.name].guarded
    builtin = app.tasks["celery.chord_unlock"]
    assert not builtin.guarded
    assert builtin.max_retries is None  # Celery's own for this one
    assert builtin.Request == Task.Request


def test_a_projects_own_base_class_keeps_its_call_and_its_settings(app: Celery) -> None:
    calls = []

    class Own(Task):
        abstract = True
        max_retries = 9

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return super().__call__(*args, **kwargs)

    @guarded_task(base=Own)
    def based(x: int) -> int:
        return x

    assert based(1) == 1
    assert calls == [(1,)]
    assert based.max_retries == 9
    assert isinstance(app.tasks[based.name], Own)


def test_a_task_of_another_base_class_of_the_app_is_kept() -> None:
    class Own(Task):
        def delay_on_commit(self) -> str:
            return "kept"

    app = Celery("own", broker="memory://", task_cls=Own, set_as_current=True)

    @guarded_task
    def own() -> None: ...

    assert app.tasks[own.name].delay_on_commit() == "kept"


def test_calling_the_function_runs_it_without_the_guard(app: Celery) -> None:
    @guarded_task(key="k:{x}")
    def plain(x: int) -> None:
        current_execution()

    with pytest.raises(GuardrailsError, match="inside a guarded task"):
        plain(1)


def test_eager_mode_runs_the_body_with_an_execution(app: Celery) -> None:
    app.conf.task_always_eager = True

    @guarded_task(key="k:{x}")
    def eager(x: int) -> tuple[str, int]:
        now = current_execution()
        return now.key, now.attempt

    assert eager.delay(4).get() == ("k:4", 1)
    assert chain(eager.si(1), eager.si(2)).apply().get() == ("k:2", 1)


# -- publishing ---------------------------------------------------------------------------------------------------------


def test_the_key_and_the_fingerprint_travel_in_the_message(app: Celery, sent: Sent) -> None:
    @guarded_task(key="order:{order.id}")
    def keyed(order: dict[str, int], note: str = "x") -> None: ...

    keyed.delay({"id": 5})
    keyed.delay(order={"id": 5}, note="x")
    first, second = (message["headers"][TRAVEL_HEADER] for message in sent)
    assert first["key"] == second["key"] == "order:5"
    assert first["fp"] == second["fp"]
    assert first["first"] > 1_700_000_000


def test_without_a_key_only_the_time_travels(app: Celery, sent: Sent) -> None:
    @guarded_task
    def unkeyed(x: int) -> None: ...

    unkeyed.delay(1)
    assert set(sent[0]["headers"][TRAVEL_HEADER]) == {"first"}


def test_headers_of_the_caller_are_kept(app: Celery, sent: Sent) -> None:
    @guarded_task
    def with_headers() -> None: ...

    headers = {"trace": "abc"}
    with_headers.apply_async(headers=headers)
    assert sent[0]["headers"]["trace"] == "abc"
    assert headers == {"trace": "abc"}


def test_arguments_from_a_generator_are_read_once(app: Celery, sent: Sent) -> None:
    @guarded_task(key="k:{x}:{y}")
    def generated(x: int, y: int) -> None: ...

    generated.apply_async(args=(number for number in (1, 2)))
    assert sent[0]["headers"][TRAVEL_HEADER]["key"] == "k:1:2"
    assert list(sent[0]["args"]) == [1, 2]


def test_a_key_that_cannot_be_made_is_refused_where_it_is_published(app: Celery, sent: Sent) -> None:
    @guarded_task(key="k:{order.id}")
    def strict(order: dict[str, int]) -> None: ...

    with pytest.raises(GuardrailsConfigError, match="k:{order.id}"):
        strict.delay({"no": 1})
    with pytest.raises(TypeError):
        strict.delay()
    assert not sent


def test_a_callable_key_gets_the_arguments_as_they_were_given(app: Celery, sent: Sent) -> None:
    @guarded_task(key=lambda order, **options: f"{order}:{sorted(options)}")
    def called(order: int, **options: int) -> None: ...

    called.delay(1, b=2, a=3)
    assert sent[0]["headers"][TRAVEL_HEADER]["key"] == "1:['a', 'b']"


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": ""}, "key = ''"),
        ({"key": 5}, "key = 5"),
        ({"key": "k:{nothing}"}, "key = .*arguments of the task \\(x\\)"),
        ({"fingerprint": ("y",)}, "fingerprint = .*arguments of the task"),
        ({"fingerprint": "x"}, "fingerprint = 'x'"),
        ({"on_duplicate": "skip"}, "on_duplicate = 'skip'"),
        ({"retry": 5}, "retry = 5"),
        ({"retention": 0}, "retention = 0"),
        ({"dead_letter": "no"}, "dead_letter = 'no'"),
        ({"retryable": ("not an error", 5)}, "retryable = "),
        ({"permanent": int}, "permanent = "),
        ({"autoretry_for": (Exception,)}, "autoretry_for"),
        ({"resource": 5}, "resource = 5"),
        ({"atomic": 1.5}, "atomic = 1.5"),
        ({"max_queue_depth": 5}, "max_queue_depth = 5"),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_written(app: Celery, options: dict[str, Any], named: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=named):

        @guarded_task(**options)
        def wrong(x: int) -> None: ...


def test_autoretry_is_refused_on_an_app_that_guards_everything(app: Celery) -> None:
    with pytest.raises(GuardrailsConfigError, match="second retry engine"):

        @app.task(base=GuardedTask, autoretry_for=(ValueError,), shared=False, lazy=False)
        def twice(x: int) -> None: ...


def test_positional_arguments_that_are_no_function_are_refused() -> None:
    with pytest.raises(TypeError, match="keyword"):
        guarded_task("k:{x}")


def test_decorating_a_task_twice_is_refused(app: Celery) -> None:
    @guarded_task
    def once() -> None: ...

    with pytest.raises(TypeError, match="once"):
        guarded_task(once)


def test_the_policy_checks_itself() -> None:
    with pytest.raises(GuardrailsConfigError, match="max_attempts=0"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(GuardrailsConfigError, match="jitter='some'"):
        RetryPolicy(jitter="some")


def test_errors_survive_pickling() -> None:
    import pickle

    from celery_guardrails import QueueFull, RetryableError

    again = pickle.loads(pickle.dumps(RetryableError("busy", retry_after=3.0)))
    assert (str(again), again.retry_after) == ("busy", 3.0)
    full = pickle.loads(pickle.dumps(QueueFull("q", 5, 4, 1.5)))
    assert (full.queue, full.depth, full.limit, full.retry_after) == ("q", 5, 4, 1.5)
    assert str(pickle.loads(pickle.dumps(PermanentError("no")))) == "no"
