"""``python -m hermes_iot`` is ``hermes-iot``."""

import sys

from hermes_iot.cli import main

sys.exit(main())
