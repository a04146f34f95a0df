"""The fixtures of a module's own deployment, as the integration tests have them."""

from tests.integration.conftest import name, pytest_generate_tests, shared_broker, shared_deploy, shared_ledger, shared_workers

__all__ = ["name", "pytest_generate_tests", "shared_broker", "shared_deploy", "shared_ledger", "shared_workers"]
