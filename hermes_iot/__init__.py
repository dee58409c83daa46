"""hermes-iot: one PyTorch model trained on a fleet of unequal edge boards over MQTT.

Importing this costs nothing; everything else is imported from the module that its name says.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
