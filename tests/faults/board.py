"""A board to be killed: one toy device in a process of its own, which ends as the command would."""

import signal
import sys
from pathlib import Path

from hermes_iot.core.device import DeviceSettings
from hermes_iot.errors import HermesError
from tests.support.fleet import over_mqtt, toy_device

#: The toy of whoever leads such a board, but for its features and classes.
ROWS = 400
SETTINGS = DeviceSettings(once=True, state_interval_s=0.05, retry_s=0.5, retry_max_s=2.0)


def main() -> None:
    url, directory, name, fleet, features, classes, *keepalive_s = sys.argv[1:]
    options = {"keepalive_s": int(keepalive_s[0]), "connect_timeout_s": 2.0} if keepalive_s else {}
    toy = {"features": int(features), "classes": int(classes), "rows": ROWS}
    device = toy_device(over_mqtt(url, **options), Path(directory), name, fleet=fleet, toy=toy, settings=SETTINGS)
    signal.signal(signal.SIGTERM, lambda *_: device.stop())
    try:
        device.run()
    except HermesError as error:
        sys.exit(f"{error.exit_code} {error}")


if __name__ == "__main__":
    main()
