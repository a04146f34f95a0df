"""The measurements behind the numbers in the documentation: ``python -m benchmarks`` (``make bench``)."""
