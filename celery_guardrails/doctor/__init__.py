"""``guardrails doctor``: what is wrong with broker, store and configuration, why it loses or repeats tasks, and what mends it.

A pure room: facts in, findings out. The facts are collected by :mod:`celery_guardrails.integration.examination`.
"""

from __future__ import annotations

from .diagnosis import CHECKS, Diagnosis, diagnose
from .facts import Facts
from .finding import Check, Finding, Level

__all__ = ["CHECKS", "Check", "Diagnosis", "Facts", "Finding", "Level", "diagnose"]
