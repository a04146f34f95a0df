"""The classifier: its order, its API, causes, groups. What it says of each library is in the other test_classify files."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.errors import (
    DuplicateTask,
    GuardrailsConfigError,
    IdempotencyConflict,
    LeaseLost,
    PermanentError,
    PublishFailed,
    QueueFull,
    RetryableError,
    StoreUnavailable,
)
from celery_guardrails.policy.classification import KINDS, Classification
from celery_guardrails.policy.classify import Classifier, check_matches
from celery_guardrails.policy.rules.table import LONGEST

classify = Classifier()


class GatewayError(Exception):
    """Of the user; no shipped rule knows it."""


class GatewayBusy(GatewayError):
    pass


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


# -- the default ----------------------------------------------------------------------------------------------------


def test_an_error_that_no_rule_knows_is_retryable() -> None:
    assert classify(GatewayError()) == Classification("retryable", None, "default")


def test_the_default_can_be_permanent() -> None:
    assert Classifier(default_kind="permanent")(GatewayError()).kind == "permanent"
    assert Classifier(default_kind="permanent")(ConnectionError()).kind == "retryable"


@pytest.mark.parametrize("wrong", ["poison", "throttled", "Retryable", "", None, 1])
def test_a_default_that_is_not_allowed_is_refused_with_what_is(wrong: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match='guardrails_default_kind.*"retryable" or "permanent"'):
        Classifier(default_kind=wrong)


# -- the task's own lists -------------------------------------------------------------------------------------------


def test_the_tasks_own_lists_come_before_everything_else() -> None:
    rules = Classifier()
    rules.rule(KeyError, kind="poison")
    assert rules(KeyError(), retryable=(KeyError,)) == Classification("retryable", None, "task.retryable")
    assert rules(ConnectionError(), permanent=(ConnectionError,)) == Classification("permanent", None, "task.permanent")


@pytest.mark.parametrize(
    ("retryable", "permanent", "kind"),
    [
        ((GatewayError,), (GatewayBusy,), "permanent"),
        ((GatewayBusy,), (GatewayError,), "retryable"),
        ((GatewayBusy,), (GatewayBusy,), "permanent"),
        ((Exception,), (GatewayError,), "permanent"),
        (GatewayBusy, (GatewayError,), "retryable"),
        ([GatewayBusy], {GatewayError}, "retryable"),
    ],
)
def test_the_nearest_class_wins_where_both_lists_fit_and_permanent_at_a_tie(retryable: Any, permanent: Any, kind: str) -> None:
    assert classify(GatewayBusy(), retryable=retryable, permanent=permanent).kind == kind


def test_a_broad_list_does_not_retry_a_permanent_error_but_a_list_that_names_it_does() -> None:
    assert classify(PermanentError("no"), retryable=(Exception,)).kind == "permanent"
    assert classify(IdempotencyConflict("no"), retryable=(Exception,)).kind == "permanent"
    assert classify(RetryableError("later"), permanent=(Exception,)).kind == "retryable"
    assert classify(PermanentError("no"), retryable=(PermanentError,)).kind == "retryable"
    assert classify(RetryableError("later"), permanent=(RetryableError,)).kind == "permanent"


@pytest.mark.parametrize(
    "name",
    ["builtins.ConnectionResetError", "builtins.ConnectionError", "builtins.OSError", "builtins.Connection*", "*.ConnectionResetError"],
)
def test_a_list_may_name_the_class_a_base_or_a_glob(name: str) -> None:
    assert classify(ConnectionResetError(), permanent=(name,)).rule == "task.permanent"


def test_a_name_fits_the_package_that_a_class_is_exported_from() -> None:
    error = type("ConnectionError", (Exception,), {"__module__": "requests.exceptions"})()
    assert classify(error, permanent=("requests.ConnectionError",)).rule == "task.permanent"
    assert classify(error, permanent=("requests.exceptions.ConnectionError",)).rule == "task.permanent"
    assert classify(error, permanent=("request.ConnectionError", "requests.Connection", "requests.exc.ConnectionError")).kind == "retryable"


def test_a_list_fits_the_cause_of_an_error_that_it_does_not_name() -> None:
    assert classify(caused(RuntimeError(), GatewayBusy()), permanent=(GatewayError,)).rule == "task.permanent"
    assert classify(caused(ValueError(), GatewayBusy()), retryable=(GatewayBusy,)).rule == "task.retryable"
    assert classify(caused(PermanentError(), GatewayBusy()), retryable=(GatewayBusy,)).kind == "permanent"


def test_a_wait_that_the_error_carries_is_kept_where_the_list_only_says_retryable() -> None:
    error = GatewayBusy()
    error.retry_after = 7  # type: ignore[attr-defined]
    assert classify(error, retryable=(GatewayBusy,)) == Classification("retryable", 7.0, "task.retryable")
    assert classify(error, permanent=(GatewayBusy,)).retry_after is None


@pytest.mark.parametrize("wrong", [1, None, int, (KeyError, 5), "KeyError", "a b.c", "", object()])
def test_check_matches_refuses_what_is_neither_a_class_nor_a_name(wrong: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="permanent="):
        check_matches(wrong, "permanent")


def test_check_matches_gives_a_tuple() -> None:
    assert check_matches(KeyError, "permanent") == (KeyError,)
    assert check_matches("stripe.*", "permanent") == ("stripe.*",)
    assert check_matches([KeyError, "a.B"], "permanent") == (KeyError, "a.B")
    assert check_matches((), "permanent") == ()


# -- our own errors -------------------------------------------------------------------------------------------------


def test_retryable_error_carries_its_wait() -> None:
    assert classify(RetryableError("busy", retry_after=30)) == Classification("retryable", 30.0, "guardrails.RetryableError")


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "5", True, object()])
def test_a_wait_that_is_no_number_of_seconds_is_ignored(wrong: Any) -> None:
    assert classify(RetryableError(retry_after=wrong)).retry_after is None


def test_a_wait_beyond_a_year_is_a_year() -> None:
    assert classify(RetryableError(retry_after=1e300)).retry_after == LONGEST
    assert classify(RetryableError(retry_after=10**400)).retry_after == LONGEST


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermanentError(), "permanent"),
        (IdempotencyConflict(), "permanent"),
        (DuplicateTask(), "permanent"),
        (GuardrailsConfigError(), "permanent"),
        (StoreUnavailable(), "retryable"),
        (PublishFailed(), "retryable"),
        (LeaseLost(), "retryable"),
    ],
)
def test_errors_of_this_package_are_known(error: Exception, kind: str) -> None:
    found = Classifier(default_kind="permanent" if kind == "retryable" else "retryable")(error)
    assert found.kind == kind
    assert found.rule.startswith("guardrails.")


def test_a_full_queue_throttles_the_task_that_publishes_to_it() -> None:
    assert classify(QueueFull("mail", 10, 10, 4.5)) == Classification("throttled", 4.5, "guardrails.QueueFull")


# -- registered rules -----------------------------------------------------------------------------------------------


def test_a_registered_rule_fits_a_class_and_its_subclasses() -> None:
    rules = Classifier()
    rules.rule(GatewayError, kind="throttled", retry_after=3)
    expected = Classification("throttled", 3.0, f"{__name__}.GatewayError")
    assert rules(GatewayBusy()) == expected
    assert rules(Exception()).rule == "default"


def test_a_registered_rule_comes_before_the_shipped_ones_and_the_last_before_the_first() -> None:
    rules = Classifier()
    rules.rule(KeyError, kind="retryable", name="first")
    assert rules(KeyError()).rule == "first"
    rules.rule("builtins.LookupError", kind="poison", name="second")
    assert rules(KeyError()) == Classification("poison", None, "second")


def test_a_registered_rule_takes_classes_and_names_together() -> None:
    rules = Classifier()
    rules.rule((GatewayBusy, "builtins.Zero*"), kind="throttled")
    assert rules(GatewayBusy()).rule == f"{__name__}.GatewayBusy, builtins.Zero*"
    assert rules(ZeroDivisionError()).kind == "throttled"
    assert rules(GatewayError()).rule == "default"


def test_a_registered_rule_may_ask_the_error_for_the_wait() -> None:
    rules = Classifier()
    rules.rule(GatewayError, kind="throttled", retry_after=lambda error: error.args[0])
    assert rules(GatewayError(12)).retry_after == 12.0
    assert rules(GatewayError(-12)).retry_after is None


def test_a_function_decides_as_a_bare_decorator() -> None:
    rules = Classifier()

    @rules.rule
    def by_code(error: BaseException) -> str | Classification | None:
        match error.args:
            case (int(code),):
                return "permanent" if code < 10 else Classification("throttled", code)
        return None

    assert rules(GatewayError(5)).kind == "permanent"
    assert rules(GatewayError(50)).retry_after == 50.0
    assert rules(GatewayError(5)).rule.endswith("by_code")
    assert rules(GatewayError(50)).rule.endswith("by_code")
    assert rules(GatewayError()).rule == "default"
    assert callable(by_code)


def test_a_predicate_decides_with_the_kind_of_its_registration() -> None:
    rules = Classifier()

    @rules.rule(kind="permanent", name="declined")
    def declined(error: BaseException) -> bool:
        return "declined" in str(error)

    rules.rule(lambda error: "busy" in str(error), kind="throttled", name="busy")
    assert rules(GatewayError("declined")) == Classification("permanent", None, "declined")
    assert rules(GatewayError("busy")) == Classification("throttled", None, "busy")
    assert rules(GatewayError("else")).rule == "default"


@pytest.mark.parametrize("answer", [lambda error: 1 / 0, lambda error: "sometimes", lambda error: True, lambda error: Classification("x")])
def test_a_rule_that_is_broken_is_passed_over_with_a_warning_that_names_it(answer: Any) -> None:
    rules = Classifier()
    rules.rule(answer, name="mine")
    with pytest.warns(RuntimeWarning, match="'mine'"):
        assert rules(ConnectionError()).rule == "builtins.ConnectionError"


@pytest.mark.parametrize("kind", ["Retryable", "", "fatal", 1])
def test_registering_an_unknown_kind_is_refused_with_the_known_ones(kind: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match='"retryable", "throttled", "permanent", "poison"'):
        Classifier().rule(KeyError, kind=kind)


@pytest.mark.parametrize("match", [int, "KeyError", 5, (KeyError, int)])
def test_registering_for_what_is_no_error_is_refused(match: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="exception class"):
        Classifier().rule(match, kind="permanent")


def test_registering_a_class_without_a_kind_is_refused() -> None:
    with pytest.raises(GuardrailsConfigError, match="has no kind"):
        Classifier().rule(KeyError)  # type: ignore[call-overload]


@pytest.mark.parametrize("wait", [-1, math.nan, "5"])
def test_registering_a_wait_that_is_none_is_refused(wait: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="retry_after"):
        Classifier().rule(KeyError, kind="retryable", retry_after=wait)


def test_two_classifiers_share_no_rules() -> None:
    one, other = Classifier(), Classifier()
    one.rule(KeyError, kind="poison")
    assert other(KeyError()).kind == "permanent"


# -- causes ---------------------------------------------------------------------------------------------------------


def test_the_cause_decides_where_the_error_itself_is_unknown() -> None:
    assert classify(caused(GatewayError(), KeyError())).rule == "builtins.KeyError"
    assert classify(caused(GatewayError(), caused(RuntimeError(), TypeError()))).kind == "permanent"


def test_the_error_itself_decides_where_it_is_known() -> None:
    assert classify(caused(ConnectionError(), KeyError())).kind == "retryable"
    assert classify(caused(KeyError(), ConnectionError())).kind == "permanent"


def test_what_was_being_handled_does_not_count() -> None:
    def cache_lookup() -> None:
        try:
            {}["missing"]
        except KeyError:
            raise GatewayError  # noqa: B904 - without "from"

    with pytest.raises(GatewayError) as caught:
        cache_lookup()
    assert isinstance(caught.value.__context__, KeyError)
    assert classify(caught.value).rule == "default"


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = GatewayError("one"), GatewayError("two")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).rule == "default"
    one.__cause__ = one
    assert classify(one).rule == "default"


def test_a_chain_is_followed_to_a_depth_only() -> None:
    error: BaseException = KeyError()
    for _ in range(1000):
        error = caused(GatewayError(), error)
    assert classify(error).rule == "default"


# -- groups ---------------------------------------------------------------------------------------------------------

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups come with Python 3.11")


def group(*members: Exception) -> Exception:
    return ExceptionGroup("several", members)  # noqa: F821 - skipped on 3.10


@needs_groups
def test_the_worst_member_of_a_group_decides() -> None:
    assert classify(group(ConnectionError(), TimeoutError())).kind == "retryable"
    assert classify(group(ConnectionError(), KeyError(), TimeoutError())).rule == "builtins.KeyError"
    assert classify(group(ConnectionError(), group(TimeoutError(), QueueFull("q", 1, 1, 5.0)))).kind == "throttled"


@needs_groups
def test_the_longest_wait_of_a_group_counts() -> None:
    assert classify(group(RetryableError(retry_after=5), QueueFull("q", 1, 1, 2.0))) == Classification(
        "throttled", 5.0, "guardrails.QueueFull"
    )
    assert classify(group(RetryableError(retry_after=5), KeyError())).retry_after is None


@needs_groups
def test_the_tasks_own_lists_fit_the_members_and_the_group_itself() -> None:
    assert classify(group(GatewayBusy(), ConnectionError()), permanent=(GatewayBusy,)).rule == "task.permanent"
    assert classify(group(KeyError()), retryable=("builtins.ExceptionGroup",)).rule == "task.retryable"


@needs_groups
def test_a_group_as_a_cause_decides_and_a_vast_one_ends() -> None:
    assert classify(caused(GatewayError(), group(KeyError()))).kind == "permanent"
    nested = group(*[GatewayError() for _ in range(300)])
    for _ in range(20):
        nested = group(nested, nested, nested)
    assert classify(nested).kind == "retryable"


# -- it never raises ------------------------------------------------------------------------------------------------

BASES = [
    Exception,
    BaseException,
    OSError,
    ValueError,
    KeyError,
    ConnectionError,
    RuntimeError,
    UnicodeError,
    RetryableError,
    PermanentError,
]
NAMES = st.sampled_from(
    ["redis.exceptions", "psycopg", "sqlalchemy.exc", "django.db.utils", "grpc", "botocore.exceptions", "stripe._error", "pymysql.err"]
)
CLASSES = st.sampled_from(["Error", "OperationalError", "ClientError", "RpcError", "StripeError", "APIError", "ResponseError", "HTTPError"])
ATTRIBUTES = st.sampled_from(
    "code errno orig response headers status http_status reason details retry_after sqlstate pgcode exceptions smtp_code recipients "
    "grpc_status_code trailing_metadata connection_invalidated retryable sqlite_errorname __cause__".split()
)
junk: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.just(object()),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.none()),
)


@given(data=st.data())
def test_no_exception_makes_it_raise_and_every_answer_is_sound(data: st.DataObject) -> None:
    cls = type(
        data.draw(CLASSES | st.text(min_size=1).filter(lambda text: "\0" not in text and text.isprintable())),
        (data.draw(st.sampled_from(BASES)),),
        {"__module__": data.draw(NAMES | st.text())},
    )
    error = cls.__new__(cls)
    error.args = tuple(data.draw(st.lists(junk, max_size=3)))
    for name in data.draw(st.lists(ATTRIBUTES, max_size=6)):
        value = data.draw(junk | st.sampled_from([error, KeyError(), ConnectionError()]))
        try:
            setattr(error, name, (lambda value=value: value) if name in ("code", "trailing_metadata") else value)
        except (TypeError, AttributeError, ValueError):
            continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = classify(error, retryable=(GatewayError,), permanent=("no.Such",), now=data.draw(st.none() | st.floats()))
    assert found.kind in KINDS
    assert found.retry_after is None or 0 <= found.retry_after <= LONGEST
    assert found.rule


class _Hostile(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def response(self) -> Any:
        raise RuntimeError("no response")

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("no members")


def test_an_error_whose_attributes_raise_gets_the_default() -> None:
    assert classify(_Hostile()).rule == "default"
    hostile = type("SSLError", (_Hostile,), {"__module__": "requests.exceptions"})()
    assert classify(hostile).rule == "default"


def test_a_class_that_cannot_be_looked_at_gets_the_default_with_a_warning() -> None:
    class Unhashable(type):
        __hash__ = None  # type: ignore[assignment]

    error = Unhashable("Strange", (Exception,), {})()
    with pytest.warns(RuntimeWarning, match="could not be classified"):
        assert classify(error).rule == "default"
