"""pytest-celery's fixtures with a guarded app: in containers where there is Docker, in local processes where there is not."""
