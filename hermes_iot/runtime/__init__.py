"""Shells around the machines: threads, clocks, signals, processes."""
