"""A Flask app with a Celery app, as Flask's documentation has them; ``SHOP_TASKS`` says how tasks meet the app context."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task, shared_task
from flask import Flask, current_app, g

from celery_guardrails import PermanentError, guarded_task
from celery_guardrails.contrib.flask import GuardrailsFlask


def log(line: str) -> None:
    """Write a line where the test can read it."""
    with (Path(os.environ["SHOP_HOME"]) / "log").open("a") as file:
        file.write(f"{line}\n")


@guarded_task(key="charge:{order}")
def charge(order: int) -> int:
    """Charge, or fail for good while there is no file that says that the gateway is mended."""
    if not (Path(os.environ["SHOP_HOME"]) / "mended").exists():
        raise PermanentError(f"the gateway of {current_app.config['SHOP']} is broken")
    g.order = order
    log(f"charged {g.order}")
    return order


@shared_task
def plain(text: str) -> str:
    """A task without a guard, in the app context as well."""
    log(f"{text} in {current_app.config['SHOP']}")
    return text


def make_celery(flask_app: Flask) -> Celery:
    """Return the Celery app."""
    if os.environ.get("SHOP_TASKS") != "as documented":
        return Celery("shop")

    class FlaskTask(Task):  # type: ignore[type-arg, misc, unused-ignore]
        """From Flask's documentation."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with flask_app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery("shop", task_cls=FlaskTask)
    celery_app.config_from_object(flask_app.config["CELERY"])
    celery_app.set_default()
    flask_app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    """Return the Flask app; also the factory that ``flask --app`` looks for."""
    flask_app = Flask("shop")
    flask_app.config.update(
        SHOP="the shop",
        CELERY={
            "broker_url": os.environ.get("SHOP_BROKER_URL", "memory://"),
            "task_default_queue": os.environ.get("SHOP_QUEUE", "celery"),
            "broker_connection_retry_on_startup": True,
            "guardrails_store": os.environ.get("SHOP_STORE_URL"),
            "guardrails_max_crashes": 5,
        },
    )
    flask_app.teardown_appcontext(lambda _: log("teardown"))
    GuardrailsFlask(flask_app, make_celery(flask_app))
    return flask_app


if "SHOP_HOME" in os.environ:  # in a process of its own: celery -A …shop finds it
    app = create_app().extensions["celery"]
