"""A retry storm with real processes, and its picture: ``python -m benchmarks.storm`` (``make bench-storm``, docs/storm.md)."""
