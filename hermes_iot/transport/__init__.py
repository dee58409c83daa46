"""Moves bytes between topics; knows no messages."""
