"""A coordinator to be killed: leads a fleet of toys, prints a line at each merge, and throws no part of its journal away."""

import sys
from pathlib import Path

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.storage.checkpoints import CheckpointStore
from hermes_iot.storage.journal import Journal
from tests.support.fleet import over_mqtt, toy_config, toy_coordinator

CONSTANTS = {"hermes-plus": {"shares": {"target_s": 0.02}}, "hermes": {"pushed": "delta"}}


def config_of(strategy: str, pushes: int):
    return toy_config(strategy=strategy, constants=CONSTANTS.get(strategy, {}), rules=StopRules(max_pushes=pushes))


def leader(url: str, run_dir: Path, strategy: str, pushes: int, **options):
    return toy_coordinator(
        over_mqtt(url),
        run_dir,
        fleet=f"kills-{strategy}",
        config=config_of(strategy, pushes),
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05, checkpoint_interval_s=0.3),
        takeover=True,
        **options,
    )


def main() -> None:
    url, run_dir, strategy, pushes = sys.argv[1:]
    # So that all of it can be replayed at the end.
    Journal.cut = lambda _self, _before: 0
    CheckpointStore._prune = lambda _self: None

    def say(event, fields):
        if event == "merge":
            sys.stdout.write(f"{fields['version']}\n")
            sys.stdout.flush()

    leader(url, Path(run_dir), strategy, int(pushes), on_record=say).run()


if __name__ == "__main__":
    main()
