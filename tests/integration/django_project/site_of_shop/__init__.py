"""The project's package."""

import os

if os.environ.get("SHOP_CELERY", "in __init__") == "in __init__":
    from .celery import app as celery_app

    __all__ = ["celery_app"]
