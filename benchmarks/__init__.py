"""Measurements, one command each: ``python -m benchmarks.<name>``; ``make bench`` runs all. Nothing in here is a test."""
