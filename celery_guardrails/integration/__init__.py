"""Where Celery meets the guard."""
