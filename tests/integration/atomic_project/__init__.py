"""A Django project whose tasks commit together with their completion; run by ``celery worker`` in processes of their own."""
