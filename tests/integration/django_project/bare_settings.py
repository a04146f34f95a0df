"""Settings of a project without a Celery app."""

from site_of_shop.settings import *  # noqa: F403
