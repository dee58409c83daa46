"""What must survive a restart: the registry and the checkpoints."""
