"""Ten thousand workers and one dependency in a discrete-event simulation: ``python -m benchmarks.fleet`` (docs/fleet.md)."""
