"""hermes-iot: one PyTorch model trained on a fleet of unequal edge boards over MQTT."""

__version__ = "0.1.0"
