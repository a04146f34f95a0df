"""Telling people of dead letters: what is sent when (:mod:`celery_guardrails.policy.alerts`) is carried to channels here."""
