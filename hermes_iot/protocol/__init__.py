"""What travels: topics, messages, their bytes and their limits."""
