"""The classifier where two answers are near each other."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.errors import GuardrailsConfigError, PermanentError, RetryableError
from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier, check_matches


class PlainError(Exception):
    pass


class NarrowError(PlainError):
    pass


def group(*members: BaseException) -> BaseException:
    """An exception group, on Python 3.10 one of its backport's shape."""
    made = type("BaseExceptionGroup", (Exception,), {})("several")
    made.exceptions = members  # type: ignore[attr-defined]
    return made  # type: ignore[no-any-return]


ORDER = ["retryable", "throttled", "permanent", "poison"]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(ORDER, 2)))
def test_of_a_group_the_worse_decides_whatever_the_order(first: str, second: str) -> None:
    classifier = Classifier()
    kinds = {"1": first, "2": second}
    classifier.rule(lambda error: kinds.get(str(error)), name="by number")
    worse = max(first, second, key=ORDER.index)
    assert classifier(group(PlainError("1"), PlainError("2"))).kind == worse


@pytest.mark.parametrize("said", [None, False])
def test_a_rule_that_declines_says_nothing_at_all(said: Any) -> None:
    classifier = Classifier()
    classifier.rule(lambda _error: said, kind="permanent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier(PlainError()) == Classification("retryable", None, "default")


def test_an_answer_of_its_own_keeps_the_name_that_it_gives_itself() -> None:
    classifier = Classifier()
    answers = {"named": Classification("permanent", rule="mine"), "nameless": Classification("permanent")}
    classifier.rule(lambda error: answers.get(str(error)), name="shop")
    assert classifier(PlainError("named")).rule == "mine"
    assert classifier(PlainError("nameless")).rule == "shop"


def test_an_answer_of_its_own_keeps_its_wait() -> None:
    classifier = Classifier()
    classifier.rule(lambda _error: Classification("throttled", 7.0))
    assert classifier(PlainError()).retry_after == 7.0


@pytest.mark.parametrize("wrong", [(PlainError, 7), ("a.B", "no dot"), ("a.B", PlainError, int), (PlainError, "."), (PlainError, "a b.C")])
def test_each_of_several_matches_is_looked_at(wrong: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match=r"permanent=.* is allowed"):
        check_matches(wrong, "permanent")


@pytest.mark.parametrize("wrong", ["ValueError", ".", "..", ".ValueError", "ValueError.", "a .B", "a.\tB", ""])
def test_a_name_without_a_module_is_refused(wrong: str) -> None:
    with pytest.raises(GuardrailsConfigError):
        check_matches(wrong, "permanent")


def test_one_match_may_stand_alone_or_in_any_collection() -> None:
    assert check_matches(PlainError, "x") == (PlainError,)
    assert check_matches("a.B", "x") == ("a.B",)
    for collection in ((PlainError,), [PlainError], {PlainError}, frozenset({PlainError})):
        assert check_matches(collection, "x") == (PlainError,)


@pytest.mark.parametrize(
    ("retryable", "permanent", "kind"),
    [
        ((NarrowError,), (PlainError,), "retryable"),
        ((PlainError,), (NarrowError,), "permanent"),
        ((PlainError,), (PlainError,), "permanent"),
        ((NarrowError,), (NarrowError,), "permanent"),
        ((Exception,), (), "retryable"),
        ((), (Exception,), "permanent"),
    ],
)
def test_of_the_tasks_own_lists_the_nearer_class_wins_and_permanent_a_tie(retryable: Any, permanent: Any, kind: str) -> None:
    answer = Classifier()(NarrowError(), retryable=retryable, permanent=permanent)
    assert (answer.kind, answer.rule) == (kind, f"task.{kind}")


class NeverError(PermanentError):
    pass


class AgainError(RetryableError):
    pass


@pytest.mark.parametrize(
    ("error", "options", "kind", "rule"),
    [
        (NeverError(), {"retryable": Exception}, "permanent", "guardrails.PermanentError"),
        (NeverError(), {"retryable": PermanentError}, "retryable", "task.retryable"),
        (NeverError(), {"retryable": NeverError}, "retryable", "task.retryable"),
        (AgainError(), {"permanent": Exception}, "retryable", "guardrails.RetryableError"),
        (AgainError(), {"permanent": RetryableError}, "permanent", "task.permanent"),
        (AgainError(), {"permanent": AgainError}, "permanent", "task.permanent"),
        (NeverError(), {}, "permanent", "guardrails.PermanentError"),
        (AgainError(), {}, "retryable", "guardrails.RetryableError"),
    ],
)
def test_our_own_errors_and_the_tasks_lists_are_weighed_by_nearness(error: Any, options: Any, kind: str, rule: str) -> None:
    answer = Classifier()(error, **options)
    assert (answer.kind, answer.rule) == (kind, rule)


@pytest.mark.parametrize("kind", ["permanent", "poison"])
def test_where_waiting_does_not_help_no_wait_is_told(kind: str) -> None:
    classifier = Classifier()
    classifier.rule(PlainError, kind=kind, retry_after=5.0, name="mine")
    assert classifier(PlainError()) == Classification(kind, None, "mine")


def test_a_group_tells_the_longest_wait() -> None:
    classifier = Classifier()
    waits = {"1": 3.0, "2": 8.0, "3": 5.0}
    classifier.rule(PlainError, kind="throttled", retry_after=lambda error: waits.get(str(error)))
    found = classifier(group(*(PlainError(name) for name in ("1", "2", "3", "none"))))
    assert (found.kind, found.retry_after) == ("throttled", 8.0)
    assert classifier(group(PlainError("none"))).retry_after is None


class ApiError(Exception):
    def __init__(self, **attributes: Any) -> None:
        self.response = SimpleNamespace(status_code=503, headers={"Retry-After": "4"})
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("attributes", "said", "wait"),
    [
        ({}, None, 4.0),
        ({"retry_after": 6.0}, None, 6.0),
        ({"retry_after": 6.0}, 7.0, 7.0),
        ({"retry_after": 0.0}, None, 0.0),
        ({"retry_after": -1.0}, None, 4.0),
        ({"retry_after": "soon"}, None, 4.0),
        ({"response": None}, None, None),
        ({}, 0.0, 0.0),
    ],
)
def test_a_kind_that_people_say_keeps_the_wait_that_the_error_carries(attributes: Any, said: float | None, wait: float | None) -> None:
    classifier = Classifier()
    classifier.rule(ApiError, kind="throttled", retry_after=said, name="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier(ApiError(**attributes)) == Classification("throttled", wait, "mine")
        assert Classifier()(ApiError(**attributes), permanent=ApiError) == Classification("permanent", None, "task.permanent")


class Looked(Exception):
    """Counts how often it is looked into."""

    looks = 0

    @property
    def exceptions(self) -> None:
        type(self).looks += 1


def looked_chain(length: int) -> BaseException:
    first = link = Looked()
    for _ in range(length - 1):
        link.__cause__ = Looked()
        link = link.__cause__
    return first


def test_of_a_chain_sixteen_links_are_looked_at() -> None:
    Looked.looks = 0
    assert Classifier()(looked_chain(40)).rule == "default"
    assert Looked.looks == 16


def test_of_a_whole_tree_two_hundred_exceptions_are_looked_at() -> None:
    Looked.looks = 0
    assert Classifier()(group(*(looked_chain(16) for _ in range(30)))).rule == "default"
    assert Looked.looks == 199, "and the group itself"


def test_a_rule_for_what_is_no_error_is_refused_by_the_name_of_the_call() -> None:
    with pytest.raises(GuardrailsConfigError, match=r"^guardrails\.rule\(match=7"):
        Classifier().rule(7, kind="permanent")  # type: ignore[call-overload]


# -- what is not as it should be ------------------------------------------------------------------------------------


def named(name: str, *bases: type[BaseException], **attributes: Any) -> BaseException:
    """Make an error of a class that is called by a library's name."""
    module, _, cls = name.rpartition(".")
    return type(cls, bases or (Exception,), {"__module__": module, **attributes})("x")


def quietly(error: BaseException, default: str = "retryable", **options: Any) -> Classification:
    """Classify; a warning fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Classifier(default)(error, **options)


def test_a_rule_whose_error_lacks_what_it_looks_at_leaves_the_word_to_the_next_class() -> None:
    error = named("smtplib.SMTPResponseException", ConnectionError)
    assert quietly(error, "permanent") == Classification("retryable", None, "builtins.ConnectionError")


def test_what_is_only_like_a_group_is_none() -> None:
    assert quietly(named("shop.Many", exceptions=(TypeError(),))).rule == "default"
    listed = group()
    listed.exceptions = [TypeError()]  # type: ignore[attr-defined]
    assert quietly(listed).rule == "default"


def test_a_group_of_nothing_says_nothing() -> None:
    assert quietly(group()).rule == "default"
    assert quietly(group(7)).rule == "default"  # type: ignore[arg-type]
    assert quietly(group(TypeError(), 7)).rule == "builtins.TypeError"  # type: ignore[arg-type]


def test_of_members_as_bad_as_each_other_the_first_is_named() -> None:
    assert quietly(group(TypeError(), KeyError())).rule == "builtins.TypeError"
    assert quietly(group(KeyError(), TypeError())).rule == "builtins.KeyError"


def test_a_short_wait_of_a_member_is_not_made_longer() -> None:
    assert quietly(group(ApiError(retry_after=0.5)), retryable=ApiError).retry_after == 0.5
    assert quietly(group(ApiError(retry_after=0.0)), retryable=ApiError).retry_after == 0.0


def test_peoples_rules_are_asked_of_two_hundred_members_at_most() -> None:
    asked: list[BaseException] = []
    classifier = Classifier()
    classifier.rule(asked.append)
    assert classifier(group(*(PlainError() for _ in range(300)))).rule == "default"
    assert len(asked) == 200, "the group itself among them"


def test_a_rule_for_the_class_comes_before_its_response_and_that_before_pythons_own_bases() -> None:
    busy = SimpleNamespace(status_code=503, headers={})
    assert quietly(named("requests.exceptions.InvalidURL", ValueError, response=busy)).rule == "requests.InvalidURL"
    assert quietly(named("shop.ApiError", ValueError, response=busy)) == Classification("retryable", None, "http.503")


def test_pythons_own_classes_carry_no_response() -> None:
    error = ConnectionError()
    error.response = SimpleNamespace(status_code=404, headers={})  # type: ignore[attr-defined]
    assert quietly(error).rule == "builtins.ConnectionError"


@pytest.mark.parametrize("match", ["shop.Gone?", "shop.Gon*", "shop.*", "s?op.Gone1", "*.Gone1", "shop.Gone[0-9]*"])
def test_a_name_may_be_a_glob(match: str) -> None:
    assert quietly(named("shop.Gone1"), permanent=match).kind == "permanent"
    assert quietly(named("shop.other.Back1"), permanent="shop.Gone?").kind == "retryable"


@pytest.mark.parametrize("collection", [tuple, list, set, frozenset])
def test_the_tasks_lists_may_be_any_collection(collection: Any) -> None:
    assert quietly(PlainError(), permanent=collection([KeyError, PlainError])).rule == "task.permanent"
    assert quietly(PlainError(), "permanent", retryable=collection([KeyError, PlainError])).rule == "task.retryable"


def test_a_name_of_one_letter_is_a_name() -> None:
    assert check_matches("X.X", "permanent") == ("X.X",)
