"""Decide. No I/O, no clock, no randomness of its own: see `machine` for the theory, docs/rules.md for the rules."""
