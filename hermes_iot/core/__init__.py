"""The two sans-I/O machines: events in, effects out, `now` as an argument."""
