"""A small Flask project, run by ``flask`` and by ``celery worker`` in processes of their own."""
