"""What runs beside the tasks in the worker's main process; one file a step.

:mod:`celery_guardrails.integration.steps` names the steps; nothing here is loaded before a worker starts.
"""
