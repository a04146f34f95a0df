"""Celery apps for real workers, configured by ``TESTAPP_…`` variables (see ``tests/support/deployment.py``)."""
