"""Every page of the admin, furnished for a look at it: the browser's tests and the pictures of the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from celery_guardrails.dead_letters.restore import restored
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Travel
from celery_guardrails.policy.history import PastAttempt, PastDeath

from .dead_letters import TRACEBACK, certificate_for, task_message
from .office import LETTERS, TRAIL, Office, all_rights, confirmed

__all__ = ["WHO", "Scenes", "furnish", "url_of"]

WHO = "ann"
#: Pages as an address, and the fields that are posted to it or None.
Scenes = Mapping[str, tuple[str, Mapping[str, str] | None]]

_REFUSED = """Traceback (most recent call last):
  File "/srv/shop/billing/tasks.py", line 41, in charge
    receipt = gateway.charge(order.total, card=card_token)
  File "/srv/shop/billing/gateway.py", line 88, in charge
    raise GatewayBusy(response.status, response.text)
shop.billing.gateway.GatewayBusy: 503 Service Unavailable: upstream connect error
"""


def furnish(office: Office, evil: str = "") -> Scenes:
    """Put letters into the archive, begin a canary, and return all pages by name.

    Args:
        office: empty.
        evil: stands in the texts that a message brings.
    """
    now = office.kit.clock.now()
    client = office.browser(*all_rights(), name=WHO)
    for number in range(37):
        died: dict[str, Any] = {
            "error": "shop.billing.gateway.GatewayBusy",
            "message": f"503 Service Unavailable: upstream connect error{evil}",
        }
        died |= {"first_seen": now - 85000, "last_seen": now - 600 - (number * number * 53) % 80000, "traceback": _REFUSED + evil}
        office.kit.bury(_charge(number), **died)
    for number in range(9):
        message = task_message(f"shop.mail.receipt{evil}", f"customer-{number}@example.com", key=f"mail:{number}")
        office.kit.bury(message, "permanent", error="builtins.KeyError", message="'currency'", last_seen=now - number * 7000, attempts=1)
    poison: dict[str, Any] = {
        "error": "billiard.exceptions.WorkerLostError",
        "message": "Worker exited prematurely: signal 9 (SIGKILL)",
        "crashes": 3,
    }
    office.kit.bury(task_message("shop.images.thumbnail", "s3://pictures/" + "long-name-" * 12), "poison", **poison)
    office.archive()
    letters = list(office.letters.order_by("pk"))
    canary, free = letters[37:45], letters[:37]
    confirmed(client, "canary", canary, why="currency is set again")
    confirmed(client, "discard", letters[45:46], why="a test order")
    confirmed(client, "canary", letters[46:47])
    confirmed(client, "canary", free[:2])
    ready, stopped, watched = office.runs.order_by("pk")
    office.complete(canary[0].key)
    live = restored(office.desk.letter(letters[46]), now=now)
    again: dict[str, Any] = {
        "error": "shop.images.TooLarge",
        "message": f"the picture has 90 megapixels{evil}",
        "last_seen": now + 1,
        "replays": 1,
    }
    office.kit.broker.dead_letter(live, "celery", certificate_for(live, "permanent", **again))
    letter = free[7]
    edited = {"args": [7, 79.9], "kwargs": {"note": "by hand", "api_key": "********"}}
    return {
        "groups": (LETTERS, None),
        "groups-empty": (LETTERS + "?groups=replayed", None),
        "letters": (LETTERS + "?state__exact=waiting", None),
        "letter": (f"{LETTERS}{letter.pk}/change/", None),
        "letter-canary": (f"{LETTERS}{canary[0].pk}/change/", None),
        **{f"confirm-{name}": (LETTERS + "?state__exact=waiting", _act(name, free)) for name in ("replay", "canary", "discard")},
        "confirm-nothing": (LETTERS + "?state__exact=waiting", _act("replay", canary[1:2])),
        "confirm-restore": (LETTERS + "?state__exact=discarded", _act("restore", letters[45:46])),
        "edit": (f"{LETTERS}{letter.pk}/edit/", None),
        "edit-refused": (f"{LETTERS}{letter.pk}/edit/", {"text": '{"args": [7, "much"], "kwargs": {}}'}),
        "edit-confirm": (f"{LETTERS}{letter.pk}/edit/", {"text": json.dumps(edited)}),
        "canary": (f"{LETTERS}canary/{ready.pk}/", None),
        "canary-stopped": (f"{LETTERS}canary/{stopped.pk}/", None),
        "canary-watched": (f"{LETTERS}canary/{watched.pk}/", None),
        "trail": (TRAIL, None),
    }


def url_of(scene: tuple[str, Mapping[str, str] | None], *, width: int, height: int) -> str:
    """Return the address at which a browser sees a page, logged in, in a frame of so many pixels."""
    page, fields = scene
    query: dict[str, Any] = {"name": WHO, "page": page, "width": width, "height": height}
    if fields is not None:
        query["post"] = json.dumps(fields)
    return "/enter/?" + urlencode(query)


def _act(action: str, rows: Any) -> dict[str, str]:
    everything = {"select_across": "1"} if len(rows) > 1 and action != "restore" else {"select_across": "0"}
    return {"action": action, "index": "0", "_selected_action": str(rows[0].pk), **everything}


def _charge(number: int) -> Any:
    history = tuple(
        PastAttempt(each, 1_899_917_000.0 + each * 60, "builtins.ConnectionError", "gateway away", "f" * 16, TRACEBACK)
        for each in range(1, 6)
    )
    deaths = (PastDeath("exhausted", "builtins.ConnectionError", 1_899_900_000.0),)
    travel = Travel(
        key=f"charge:{number}", fingerprint="f" * 16, attempts=6, first=1_899_950_000.0, replays=1, history=history[1:], deaths=deaths
    )
    body = json.dumps([[number, 19.9], {"note": "by hand", "api_key": "k-1"}, {"callbacks": None}]).encode()
    message = task_message("shop.charge", number).with_headers(**{TRAVEL_HEADER: travel.to_header()})
    return type(message)(**{**vars(message), "body": body})
