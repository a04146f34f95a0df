"""Chains, groups and chords of guarded tasks: with duplicates, with dead letters, and as in plain Celery."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from celery import chain, chord, group
from celery.canvas import StampingVisitor
from celery.exceptions import ChordError

from tests.support import consistently, eventually


@pytest.fixture(scope="module")
def app(shared_deploy):
    """Every task of it is guarded, through ``task_cls``."""
    app = shared_deploy("canvas", env={"TESTAPP_GUARDED": "1"})
    app.worker(concurrency=4)
    return app


@pytest.fixture(scope="module")
def twice(shared_deploy):
    """Guarded tasks again, and every message is delivered twice, at any place of a canvas."""
    app = shared_deploy("canvas", env={"TESTAPP_GUARDED": "1", "TESTAPP_TWICE": "1"})
    app.worker(concurrency=4)
    return app


@pytest.fixture(scope="module")
def plain(shared_deploy):
    """The same tasks on plain Celery."""
    app = shared_deploy("canvas", env={"TESTAPP_GUARDED": "0"})
    app.worker(concurrency=2)
    return app


def quiet(app):
    """Whether nothing is left to be done."""
    return app.depth() == 0 and (app.broker.kind == "amqp" or app.guardrails.broker.delayed() == 0)


# -- a duplicate among them -----------------------------------------------------------------------------------------


def test_a_chain_whose_steps_have_run_before_ends_with_the_same_values(app, name):
    measured, increased = app.task("measured"), app.task("increased")
    steps = [measured.s(f"{name}.head", 1), increased.s(f"{name}.middle"), increased.s(f"{name}.tail")]
    assert chain(*steps).delay().get(timeout=30) == 3
    again = chain(*steps).delay()
    assert again.get(timeout=30) == 3
    assert [again.parent.get(timeout=5), again.parent.parent.get(timeout=5)] == [2, 1]
    assert [app.ledger.count(f"{name}.{step}", "start") for step in ("head", "middle", "tail")] == [1, 1, 1]


def test_two_chains_with_the_same_head_at_once_both_end(app, name):
    measured, increased = app.task("measured"), app.task("increased")
    results = [chain(measured.s(name, 1, 0.5), increased.s(f"{name}.{tail}")).delay() for tail in range(3)]
    assert [result.get(timeout=30) for result in results] == [2, 2, 2]
    assert app.ledger.count(name) == 1


def test_a_chain_whose_head_is_delivered_twice_runs_each_step_once(app, name):
    measured, increased, add = app.task("measured"), app.task("increased"), app.task("add")
    tail = increased.s(f"{name}.tail").set(task_id=f"tail-{name}")
    head = measured.s(name, 1, 0.3).set(task_id=f"head-{name}")
    # the same message twice, as a publisher sends that did not hear the broker's answer
    results = [chain(head.clone(), add.s(1).set(task_id=f"middle-{name}"), tail.clone()).apply_async() for _ in range(2)]
    assert {result.id for result in results} == {f"tail-{name}"}
    assert results[0].get(timeout=30) == 3
    eventually(lambda: quiet(app), 20)
    consistently(lambda: app.ledger.count(name, "start") == app.ledger.count(f"{name}.tail", "start") == 1, 0.5)


def test_a_group_with_a_duplicate_has_the_same_value_in_both_places(app, name):
    token = app.task("token")
    values = group(token.s(f"{name}.{n}", 0.2) for n in (0, 1, 0, 2, 0)).delay().get(timeout=30)
    assert values[0] == values[2] == values[4]
    assert len(set(values)) == 3
    assert [app.ledger.count(f"{name}.{n}", "start") for n in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["done already", "still running"])
def test_a_chord_with_a_duplicate_in_its_header_calls_its_body_once_with_all_values(app, name, seconds):
    measured, counted = app.task("measured"), app.task("counted")
    header = [measured.s(f"{name}.{n}", 10**n, seconds) for n in (0, 1, 0, 2, 1)]
    result = chord(header, counted.s(f"{name}.body")).delay()
    assert result.get(timeout=30) == 122
    (body,) = app.ledger.entries(event="effect", key=f"{name}.body")
    assert sorted(body.fields["numbers"]) == [1, 1, 10, 10, 100]
    assert [app.ledger.count(f"{name}.{n}", "start") for n in range(3)] == [1, 1, 1]


def test_a_chord_that_is_published_twice_ends_both_times(app, name):
    measured, counted = app.task("measured"), app.task("counted")
    body = counted.s(f"{name}.body").on_error(app.task("blame").s(name))
    results = [chord([measured.s(f"{name}.{n}", 10**n, 0.2) for n in range(3)], body.clone()).delay() for _ in range(2)]
    assert [result.get(timeout=30) for result in results] == [111, 111]
    assert app.ledger.counts("start")[f"{name}.body"] == 1
    assert app.ledger.count(name, "blamed") == 0


# -- a dead letter among them ---------------------------------------------------------------------------------------


def test_a_chord_with_a_dead_lettered_header_calls_the_errback_and_not_the_body(app, name):
    measured, counted, broken = app.task("measured"), app.task("counted"), app.task("broken")
    dead = app.dead()
    header = [measured.s(f"{name}.0", 1), broken.s(), measured.s(f"{name}.1", 2, 0.5)]
    result = chord(header, counted.s(f"{name}.body").on_error(app.task("blame").s(name))).delay()
    # not propagated: get() would raise the error of a parent instead, where it comes to see that first
    failure = result.get(timeout=30, propagate=False)
    assert isinstance(failure, ChordError)
    assert "on purpose" in str(failure)
    app.ledger.wait("blamed", name)
    eventually(lambda: app.dead() == dead + 1)
    assert [member.get(timeout=10, propagate=False) for member in (result.parent[0], result.parent[2])] == [1, 2]
    assert isinstance(result.parent[1].get(timeout=10, propagate=False), KeyError)
    eventually(lambda: quiet(app))
    assert app.ledger.count(f"{name}.body", "start") == 0


def test_a_chain_with_a_dead_lettered_step_stops_there_and_calls_the_errback(app, name):
    measured, increased, broken = app.task("measured"), app.task("increased"), app.task("broken")
    dead = app.dead()
    steps = chain(measured.s(name, 1), broken.s(), increased.s(f"{name}.tail"))
    result = steps.apply_async(link_error=app.task("blame").s(name))
    app.ledger.wait("blamed", name)
    with pytest.raises(KeyError):
        result.parent.get(timeout=10)
    assert result.parent.parent.get(timeout=10) == 1
    eventually(lambda: app.dead() == dead + 1)
    eventually(lambda: quiet(app))
    assert app.ledger.count(f"{name}.tail", "start") == 0


# -- as in plain Celery ---------------------------------------------------------------------------------------------

PAIRS = list(zip(range(6), range(6), strict=True))

#: Every kind of canvas; ``t`` returns a task of one app or the other by its name.
CANVASES = {
    "a task": lambda t: t("add").s(1, 2),
    "partial arguments": lambda t: t("add").s(2).clone(args=(1,)),
    "an immutable step": lambda t: chain(t("add").s(1, 2), t("constant").si()),
    "a chain": lambda t: chain(t("add").s(1, 2), t("add").s(3), t("double").s()),
    "a chain in a chain": lambda t: chain(t("add").s(1, 2), chain(t("add").s(3), t("double").s()), t("add").s(1)),
    "a group": lambda t: group(t("add").s(n, n) for n in range(5)),
    "a group of one": lambda t: group([t("add").s(1, 1)]),
    "an empty group": lambda t: group([]),
    "a group of chains": lambda t: group(chain(t("add").s(n, n), t("double").s()) for n in range(3)),
    "a group in a group": lambda t: group(group(t("add").s(1, 1), t("add").s(2, 2)), t("add").s(3, 3)),
    "a chord": lambda t: chord([t("add").s(n, n) for n in range(5)], t("total").s()),
    "a chord of one": lambda t: chord([t("add").s(1, 1)], t("total").s()),
    "a chord of chains": lambda t: chord([chain(t("add").s(n, n), t("double").s()) for n in range(3)], t("total").s()),
    "a chord whose body is a chain": lambda t: chord([t("add").s(n, n) for n in range(3)], chain(t("total").s(), t("double").s())),
    "a chord whose body is a group": lambda t: chord([t("add").s(n, n) for n in range(3)], group(t("total").s(), t("listed").s())),
    "a chord in a chain": lambda t: chain(t("add").s(1, 2), group(t("add").s(n) for n in range(3)), t("total").s(), t("double").s()),
    "a chord in a chord": lambda t: chord([chord([t("add").s(1, 1), t("add").s(2, 2)], t("total").s()), t("add").s(3, 3)], t("total").s()),
    "a chain that ends in a group": lambda t: chain(t("add").s(1, 2), group(t("add").s(n) for n in range(3))),
    "a chord in a chain in a group": lambda t: group(
        chain(t("add").s(1, 1), group(t("add").s(1), t("add").s(2)), t("total").s()), t("add").s(3, 3)
    ),
    "two chords in a chain": lambda t: chain(
        group(t("add").s(1, 1), t("add").s(2, 2)), group(t("total").s(), t("total").s()), t("total").s()
    ),
    "replace": lambda t: t("replaced").s(1),
    "replace in a chain": lambda t: chain(t("add").s(1, 2), t("replaced").s(), t("double").s()),
    "replace by a chain": lambda t: chain(t("replaced_by_chain").s(1), t("double").s()),
    "replace by a group": lambda t: t("replaced_by_group").s(1),
    "replace by a group in a chain": lambda t: chain(t("replaced_by_group").s(1), t("total").s()),
    "replace by a chord": lambda t: chain(t("replaced_by_chord").s(1), t("double").s()),
    "replace in a group": lambda t: group(t("replaced").s(1), t("replaced_by_chain").s(1), t("add").s(1, 1)),
    "replace in a chord": lambda t: chord([t("replaced").s(1), t("replaced_by_chord").s(1), t("add").s(1, 1)], t("total").s()),
    "add_to_chord": lambda t: chord([t("growing").s(1), t("add").s(1, 1)], t("total").s()),
    "map": lambda t: t("double").map([1, 2, 3]),
    "starmap": lambda t: t("add").starmap([(1, 2), (3, 4)]),
    "map in a chain": lambda t: chain(t("double").map([1, 2, 3]), t("total").s()),
    "chunks": lambda t: t("add").chunks(PAIRS, 2),
    "chunks as a group": lambda t: t("add").chunks(PAIRS, 2).group(),
    "chunks in a chord": lambda t: chord(t("add").chunks(PAIRS, 2).group(), t("listed").s()),
    "self.retry": lambda t: t("second_time").s(1),
    "self.retry in a chain": lambda t: chain(t("second_time").s(1), t("double").s()),
    "self.retry in a chord": lambda t: chord([t("second_time").s(1), t("second_time").s(2), t("add").s(1, 1)], t("total").s()),
    "a failure": lambda t: t("broken").s(),
    "a failure in a chain": lambda t: chain(t("add").s(1, 2), t("broken").s(), t("double").s()),
    "a failure in a group": lambda t: group(t("add").s(1, 2), t("broken").s()),
    "a failure in a chord": lambda t: chord([t("add").s(1, 2), t("broken").s()], t("total").s()),
    "a failure in a chord in a chain": lambda t: chain(group(t("add").s(1, 2), t("broken").s()), t("total").s(), t("double").s()),
    "a body that fails": lambda t: chord([t("add").s(1, 2), t("add").s(3, 4)], t("broken").s()),
    "arguments that do not fit": lambda t: t("add").s(1),
}


def publish(app, which):
    try:
        return CANVASES[which](app.task).apply_async()
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is to be the same on both sides
        return exc


def outcome(result):
    """The value of a result, or its error, without what differs between two runs."""
    if isinstance(result, Exception):
        return told(result)
    # asked, not waited for: what get() subscribes to may have been told a moment before, also in plain Celery
    eventually(result.ready, 60, every=0.1, because=lambda: f"{result!r} is ready, it is {getattr(result, 'state', '')}")
    # not propagated: get() would raise the error of a parent instead, where it comes to see that first
    return told(result.get(timeout=10, propagate=False))


def told(value):
    if isinstance(value, Exception):
        return type(value).__name__, re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", str(value))
    return [told(one) for one in value] if isinstance(value, list) else value


def shape(result):
    """Classes of a result and its parents, and what the parents have returned."""
    found = [type(result).__name__]
    parent = getattr(result, "parent", None)
    while parent is not None:
        found.append((type(parent).__name__, outcome(parent)))
        parent = parent.parent
    return found


@pytest.fixture(scope="module")
def published(app, plain):
    """All of them at once, on both apps."""
    return {which: (publish(app, which), publish(plain, which)) for which in CANVASES}


@pytest.mark.parametrize("which", CANVASES)
def test_a_canvas_of_guarded_tasks_behaves_as_in_plain_celery(published, which):
    guarded, plain = published[which]
    assert outcome(guarded) == outcome(plain)
    assert shape(guarded) == shape(plain)


# -- every message twice --------------------------------------------------------------------------------------------

#: Celery refuses the other one before there is a message.
PUBLISHED = [which for which in CANVASES if which != "arguments that do not fit"]


@pytest.fixture(scope="module")
def published_twice(twice, plain):
    """All of them at once, on an app whose messages all come twice, and on the plain one."""
    return {which: (publish(twice, which), publish(plain, which)) for which in PUBLISHED}


@pytest.mark.parametrize("which", PUBLISHED)
def test_a_canvas_whose_messages_all_come_twice_behaves_as_in_plain_celery(published_twice, which):
    guarded, plain = published_twice[which]
    assert outcome(guarded) == outcome(plain)
    assert shape(guarded) == shape(plain)


def test_no_body_of_them_ran_twice(twice, published_twice):
    for guarded, _ in published_twice.values():
        outcome(guarded)
    eventually(lambda: quiet(twice), 30)
    runs = twice.ledger.entries(event="body")
    assert runs
    assert [run for run, times in Counter((entry.fields["task"], entry.key) for entry in runs).items() if times > 1] == []


# -- replaced -------------------------------------------------------------------------------------------------------

#: How a task puts another in its place, what that returns for 3, and how many effects it has.
PLACES = {"task": (3, 1), "chain": (4, 2), "group": ([3, 6], 1), "chord": (9, 2), "same key": (3, 1)}


def effects(app, name):
    """How often each task of a name had its effect."""
    return {key: times for key, times in app.ledger.counts().items() if key.split(".")[0] == name}


@pytest.mark.parametrize("how", PLACES)
def test_a_task_that_is_replaced_has_one_effect_when_all_messages_come_twice(twice, name, how):
    value, number = PLACES[how]
    assert twice.send("relayed", name, 3, how).get(timeout=30) == value
    eventually(lambda: quiet(twice), 20)
    assert set(effects(twice, name).values()) == {1}
    assert len(effects(twice, name)) == 1 + number


@pytest.mark.parametrize("how", PLACES)
def test_the_duplicate_of_a_replaced_task_ends_with_the_value_of_the_replacement(app, name, how):
    value, number = PLACES[how]
    relayed, listed = app.task("relayed"), app.task("listed")
    first = relayed.delay(name, 3, how)
    second = chain(relayed.si(name, 3, how), listed.s()).delay()  # while the first may still run
    third = chord([relayed.si(name, 3, how), relayed.si(name, 3, how)], listed.s()).delay()
    assert first.get(timeout=30) == value
    assert second.get(timeout=30) == [value]
    assert third.get(timeout=30) == [[value, value]]
    assert relayed.delay(name, 3, how).get(timeout=30) == value  # long after
    assert set(effects(app, name).values()) == {1}
    assert len(effects(app, name)) == 1 + number


def test_a_replaced_task_in_a_chain_that_is_published_twice_runs_each_step_once(app, name):
    relayed, increased = app.task("relayed"), app.task("increased")
    steps = [relayed.si(name, 3, "chain").set(task_id=f"head-{name}"), increased.s(f"{name}.tail").set(task_id=f"tail-{name}")]
    results = [chain(*(step.clone() for step in steps)).apply_async() for _ in range(2)]
    assert [result.get(timeout=30) for result in results] == [5, 5]
    eventually(lambda: quiet(app), 20)
    assert effects(app, name) == dict.fromkeys([name, f"{name}.later", f"{name}.last", f"{name}.tail"], 1)


def test_a_replaced_task_whose_id_is_its_key_has_one_effect(app, name):
    for _ in range(3):
        result = app.task("relayed_by_id").apply_async((name, 3), task_id=f"id-{name}")
        assert result.get(timeout=30) == 8
    eventually(lambda: quiet(app), 20)
    assert effects(app, name) == {name: 1}
    # another message is another key
    assert app.send("relayed_by_id", name, 3).get(timeout=30) == 8
    assert effects(app, name) == {name: 2}


def test_the_duplicate_of_a_task_whose_replacement_failed_fails_as_that_did(app, name):
    result = app.send("relayed", name, 3, "broken")
    with pytest.raises(KeyError, match="on purpose"):
        result.get(timeout=30)
    with pytest.raises(KeyError, match="on purpose"):
        app.send("relayed", name, 3, "broken").get(timeout=30)
    assert effects(app, name) == {name: 1}


# -- links, errbacks, growing chords, stamps ------------------------------------------------------------------------


def test_links_and_errbacks_are_called_once_each_when_all_messages_come_twice(twice, name):
    note, blame = twice.task("note"), twice.task("blame")
    links = [note.s(f"{name}.{n}").set(task_id=f"{name}-{n}") for n in range(2)]
    assert twice.task("measured").apply_async((name, 5), link=links).get(timeout=20) == 5
    with pytest.raises(KeyError):
        twice.task("broken").apply_async(link_error=blame.s(name).set(task_id=f"{name}-blame")).get(timeout=20)
    for n in range(2):
        twice.ledger.wait("linked", f"{name}.{n}")
    twice.ledger.wait("blamed", name)
    eventually(lambda: quiet(twice), 20)
    assert [twice.ledger.count(f"{name}.{n}", "linked") for n in range(2)] == [1, 1]
    assert twice.ledger.count(name) == 1


def test_a_chord_that_a_header_adds_to_ends_with_all_values_when_all_messages_come_twice(twice, name):
    grown, measured, counted = twice.task("grown"), twice.task("measured"), twice.task("counted")
    header = [grown.s(name, 1), measured.s(f"{name}.slow", 5, 0.5)]
    assert chord(header, counted.s(f"{name}.body")).delay().get(timeout=30) == 16
    eventually(lambda: quiet(twice), 20)
    assert effects(twice, name) == dict.fromkeys([name, f"{name}.slow", f"{name}.added", f"{name}.body"], 1)


class Stamp(StampingVisitor):
    """Puts a stamp and a header of its own on everything."""

    def __init__(self, name):
        self.name = name

    def on_signature(self, sig, **headers):
        return {"order": self.name, "stamped_headers": ["order"]}

    def on_chord_body(self, sig, **headers):
        return {"body": True, "stamped_headers": ["body"]}


@pytest.fixture(params=["once", "twice"])
def stamping(request, app, twice):
    return {"once": app, "twice": twice}[request.param]


def test_a_stamped_canvas_keeps_its_keys_and_has_each_effect_once(stamping, name):
    app = stamping
    measured, counted, increased = app.task("measured"), app.task("counted"), app.task("increased")

    def canvas():
        made = chain(
            measured.s(f"{name}.head", 1),
            chord([increased.s(f"{name}.0"), increased.s(f"{name}.1")], counted.s(f"{name}.body")),
            increased.s(f"{name}.tail"),
        )
        made.stamp(Stamp(name))
        return made

    assert [canvas().apply_async().get(timeout=30) for _ in range(2)] == [5, 5]
    eventually(lambda: quiet(app), 20)
    assert effects(app, name) == dict.fromkeys([f"{name}.{step}" for step in ("head", "0", "1", "body", "tail")], 1)
    assert {entry.fields["stamps"] for entry in app.ledger.entries(event="stamped") if entry.key.startswith(name)} == {name}


# -- a result backend that cannot count -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["filesystem", "database"])
def without_join(request, shared_deploy, tmp_path_factory):
    """A chord ends by the polling of celery.chord_unlock; every message comes twice."""
    directory = tmp_path_factory.mktemp("results")
    url = f"file://{directory}" if request.param == "filesystem" else f"db+sqlite:///{directory}/results.sqlite"
    app = shared_deploy("canvas", backend_url=url, result_chord_retry_interval=0.2, env={"TESTAPP_GUARDED": "1", "TESTAPP_TWICE": "1"})
    app.worker(concurrency=2)
    return app


def test_a_chord_whose_backend_cannot_count_ends_once(without_join, name):
    app = without_join
    measured, counted, increased = app.task("measured"), app.task("counted"), app.task("increased")
    header = [measured.s(f"{name}.{n}", 10**n, 0.2 * n) for n in (0, 1, 2, 1)]
    assert chain(chord(header, counted.s(f"{name}.body")), increased.s(f"{name}.tail")).delay().get(timeout=60) == 122
    eventually(lambda: quiet(app), 20)
    assert effects(app, name) == dict.fromkeys([f"{name}.{step}" for step in ("0", "1", "2", "body", "tail")], 1)


def test_a_chord_whose_backend_cannot_count_and_whose_header_fails_calls_its_errback(without_join, name):
    app = without_join
    header = [app.task("measured").s(f"{name}.0", 1), app.task("broken").s()]
    result = chord(header, app.task("counted").s(f"{name}.body").on_error(app.task("blame").s(name))).delay()
    assert isinstance(result.get(timeout=60, propagate=False), ChordError)
    app.ledger.wait("blamed", name)
    assert app.ledger.count(f"{name}.body", "start") == 0


@pytest.fixture(params=["guarded", "plain"])
def either(request, app, plain):
    return {"guarded": app, "plain": plain}[request.param]


def test_links_are_called_with_the_value(either, name):
    either.task("add").apply_async((1, 2), link=[either.task("note").s(f"{name}.{n}") for n in range(2)])
    assert [either.ledger.wait("linked", f"{name}.{n}")[0].fields["value"] for n in range(2)] == [3, 3]


def test_the_link_of_a_duplicate_is_called_too(app, name):
    assert app.send("measured", name, 5).get(timeout=20) == 5
    app.task("measured").apply_async((name, 5), link=app.task("note").s(name))
    assert app.ledger.wait("linked", name)[0].fields["value"] == 5


@pytest.mark.parametrize("errback", ["blame", "blame_old"])
def test_errbacks_are_called_once_when_a_task_fails(either, name, errback):
    result = either.task("broken").apply_async(link_error=either.task(errback).s(name))
    with pytest.raises(KeyError):
        result.get(timeout=20)
    (blamed,) = either.ledger.wait("blamed", name)
    assert blamed.fields.get("error", "KeyError") == "KeyError"
    assert blamed.fields.get("task_id", result.id) == result.id
    assert either.ledger.count(name, "blamed") == 1


def test_errbacks_of_a_group_are_called_for_each_member_that_fails(either, name):
    broken, add = either.task("broken"), either.task("add")
    members = group(broken.s(), add.s(1, 1), broken.s())
    members.link_error(either.task("blame").s(name))
    members.apply_async()
    either.ledger.wait("blamed", name, times=2)


def test_what_failed_is_a_dead_letter_on_the_guarded_app_only(app, plain, name):
    before = app.dead()
    for either in (app, plain):
        with pytest.raises(KeyError):
            either.send("broken", name).get(timeout=20)
    eventually(lambda: app.dead() == before + 1)
    assert plain.dead() == 0
