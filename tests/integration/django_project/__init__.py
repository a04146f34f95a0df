"""A small Django project, run by ``manage.py`` and by ``celery worker`` in processes of their own."""
