"""A coordinator to be killed: leads a fleet of toys, and prints a line at each merge.

What it throws away of its journal and its checkpoints has another name by then, in a directory beside the run's, so that
all of it can be replayed at the end.
"""

import os
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
        fleet=f"kills-{strategy}-{pushes}",
        config=config_of(strategy, pushes),
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05, checkpoint_interval_s=0.3),
        takeover=True,
        **options,
    )


def kept(run_dir: Path) -> Path:
    """Give every file of journal and checkpoints that has none its other name; where these are."""
    archive = run_dir.with_name("kept")
    for pattern in ("journal/journal-*", "checkpoints/model-*.safetensors"):
        for path in run_dir.glob(pattern):
            other = archive / path.relative_to(run_dir)
            other.parent.mkdir(parents=True, exist_ok=True)
            if not other.exists():
                os.link(path, other)
    return archive


def main() -> None:
    url, run_dir, strategy, pushes = sys.argv[1:]
    cut, prune = Journal.cut, CheckpointStore._prune

    def keeping_cut(journal, before):
        kept(Path(run_dir))
        return cut(journal, before)

    def keeping_prune(store):
        kept(Path(run_dir))
        prune(store)

    Journal.cut, CheckpointStore._prune = keeping_cut, keeping_prune

    def say(event, fields):
        if event == "merge":
            sys.stdout.write(f"{fields['version']}\n")
            sys.stdout.flush()

    leader(url, Path(run_dir), strategy, int(pushes), on_record=say).run()


if __name__ == "__main__":
    main()
