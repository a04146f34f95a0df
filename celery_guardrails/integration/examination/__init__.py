"""Collects what :mod:`celery_guardrails.doctor` judges by: from the app, the broker, and the store.

Nothing is changed by it, and what does not answer is a fact like others.
"""

from __future__ import annotations

from .collect import collect

__all__ = ["collect"]
