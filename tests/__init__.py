"""The tests of celery-guardrails."""
