"""Turns a job into a trained vector: tasks, data sets, the torch trainer."""
