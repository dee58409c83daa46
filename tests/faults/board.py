"""A board to be killed: one toy device in a process of its own, which ends as the command would."""

import signal
import sys
from pathlib import Path

from hermes_iot.core.device import DeviceSettings
from hermes_iot.errors import HermesError
from tests.support.fleet import over_mqtt, toy_device

SETTINGS = DeviceSettings(once=True, state_interval_s=0.05, retry_s=0.5, retry_max_s=2.0)


def main() -> None:
    url, directory, name, fleet, features, classes = sys.argv[1:]
    toy = {"features": int(features), "classes": int(classes), "rows": 400}
    device = toy_device(over_mqtt(url), Path(directory), name, fleet=fleet, toy=toy, settings=SETTINGS)
    signal.signal(signal.SIGTERM, lambda *_: device.stop())
    try:
        device.run()
    except HermesError as error:
        sys.exit(f"{error.exit_code} {error}")


if __name__ == "__main__":
    main()
