"""Mutation testing of ``celery_guardrails/policy/`` and of the Lua scripts: ``python -m tests.mutation`` (docs/mutants.md)."""
