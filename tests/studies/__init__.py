"""Comparisons behind docs/choosing.md: one command, one table, one figure each."""
