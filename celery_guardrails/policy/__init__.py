"""Pure decisions: no I/O, no clock, no randomness of their own.

Time, jitter and identifiers are handed in, so that the worker, the tests and a simulation run the same code.
"""
