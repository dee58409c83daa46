"""Which test shows which fault of reliability.md to be survived, so that `pytest -k F10` runs them all.

A test in this folder bears its fault's number in its name or its file's, and is real where it starts something real: a broker, a
process, a line of its own; which is looked up in its source. Those that stand elsewhere, beside what they test, are
listed here. `python -m tests.faults.covered` writes the table in README.md anew.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
_NUMBERED = re.compile(r"test_(F\d\d)_\w+")
#: Whoever uses one of these has to do with a broker, a process, a socket, a disk or a network that is really there.
_REAL = frozenset(
    {
        "mosquitto",
        "MosquittoBroker",
        "ScriptedBroker",
        "Proxy",
        "Namespace",
        "Popen",
        "subprocess",
        "kill",
        "small_disk",
    }
)
_HEAD = """# Which test shows which fault to be survived

`pytest -k F08` runs all tests of fault F8. *Simulated*: machines, codecs or files alone, in virtual time or in memory.
*Real*: a Mosquitto, sockets, processes, disks, signals. Written by `python -m tests.faults.covered`.

| | fault | simulated | real |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, and the tests of it outside this folder: paths below tests/, with or without the test's name."""

    what: str
    simulated: tuple[str, ...] = ()
    real: tuple[str, ...] = ()


COVERED = {
    "F01": Fault(
        what="broker stopped and started in the middle of a run",
        simulated=("core/test_fleet_faults.py::test_a_coordinator_whose_line_is_cut",),
        real=("transport/test_mqtt_transport.py::test_a_broker_that_was_killed_and_restarted_is_found_again",),
    ),
    "F02": Fault(
        what="broker killed, its store deleted",
        simulated=("core/test_fleet_faults.py::test_a_broker_that_has_lost_its_store_is_given_everything_again",),
        real=("runtime/test_broker_restart.py",),
    ),
    "F03": Fault(
        what="broker down for minutes",
        simulated=(
            "core/test_device_machine.py::test_without_an_answer_it_goes_on_alone_and_the_newest_update_replaces_the_older",
            "core/test_device_machine.py::test_disconnected_while_pushed_it_goes_on_and_asks_again_when_connected",
            "core/test_barriers.py::test_an_update_made_while_nobody_leads_is_kept_and_the_newest_is_sent_when_somebody_does",
        ),
        real=("transport/test_transport_contract.py::test_nothing_is_queued_while_disconnected",),
    ),
    "F04": Fault(
        what="coordinator killed at any point",
        simulated=(
            "core/test_fleet_faults.py::test_a_coordinator_that_dies_between_any_two_effects",
            "core/test_fleet_faults.py::test_a_coordinator_that_dies_again_and_again",
            "runtime/test_redo_log.py::test_a_coordinator_that_dies_at_any_instant_comes_back_with_the_model_it_had",
        ),
        real=("storage/test_journal.py::test_a_killed_writer_leaves_everything_it_reported_as_synced",),
    ),
    "F05": Fault(
        what="coordinator away for an hour",
        simulated=(
            "core/test_fleet_faults.py::test_a_device_boots_and_trains_while_the_coordinator_is_away",
            "core/test_fleet_faults.py::test_a_silent_coordinator_is_not_waited_for",
        ),
        real=(
            "runtime/test_device_processes.py::test_a_device_reboots_while_the_coordinator_is_away_and_both_go_on_when_it_is_back",
        ),
    ),
    "F06": Fault(
        what="two coordinators, one fleet",
        simulated=("runtime/test_leadership.py",),
        real=(
            "cli/test_commands.py::test_a_second_coordinator_is_one_line_and_exit_code_7",
            "runtime/test_coordinator_runner.py::test_the_second_coordinator_is_refused_and_the_first_does_not_notice",
            "runtime/test_coordinator_runner.py::test_taking_over_pushes_the_first_out_and_the_second_goes_on",
        ),
    ),
    "F07": Fault(
        what="device killed in training, in an upload",
        simulated=(
            "core/test_fleet_faults.py::test_a_device_that_crashes_takes_up_its_retained_allocation",
            "protocol/test_chunks.py::test_a_lost_slice_gives_nothing_and_the_rest_is_dropped_at_its_deadline",
        ),
        real=("runtime/test_device_processes.py::test_a_device_that_is_killed_goes_on_from_its_retained_allocation",),
    ),
    "F08": Fault(
        what="half-open connection",
        simulated=("simulation/test_runs.py::test_a_board_that_crashes_leaves_its_will_and_the_run_goes_on",),
        real=(
            "transport/test_mqtt_transport.py::test_a_half_open_line_is_noticed_by_the_keep_alive",
            "transport/test_mqtt_transport.py::test_close_is_quick_on_a_line_that_stalled_with_a_full_buffer",
        ),
    ),
    "F09": Fault(
        what="flapping link",
        simulated=("core/test_fleet_faults.py::test_a_flapping_line",),
        real=(
            "transport/test_transport_contract.py::test_a_delayed_will_is_not_published_when_the_client_is_back_in_time",
        ),
    ),
    "F10": Fault(
        what="QoS 1 delivers twice",
        simulated=(
            "core/test_fleet_faults.py::test_every_delivery_twice",
            "core/test_coordinator_machine.py::test_a_repeated_update_is_a_duplicate_answered_again",
        ),
        real=(
            "transport/test_mqtt_transport.py::test_a_message_that_was_sent_but_not_acknowledged_is_sent_again_and_flush_waits_for_it",
        ),
    ),
    "F11": Fault(
        what="chunks out of order, twice, interleaved, lost",
        simulated=("protocol/test_chunks.py", "core/test_fleet_faults.py::test_a_lossy_duplicating_bus"),
    ),
    "F12": Fault(
        what="expired or stale update",
        simulated=(
            "core/test_coordinator_machine.py::test_what_cannot_be_applied_is_counted_acked_and_answered_with_the_present_model",
            "core/test_coordinator_machine.py::test_after_the_end_births_get_no_allocation_and_updates_are_stale",
        ),
        real=("transport/test_transport_contract.py::test_an_expired_message_is_not_delivered",),
    ),
    "F13": Fault(
        what="a captured update said again: `duplicate` or `stale` under its device's name, where nothing but a signature"
        " would tell it from a redelivery; `identity` under another's",
        simulated=(
            "protocol/test_wire.py::test_an_update_of_another_device_is_refused",
            "core/test_coordinator_machine.py::test_a_repetition_that_nobody_can_be_waiting_for_costs_no_model",
            "core/test_coordinator_machine.py::test_an_update_of_another_run_is_counted_whoever_sends_it",
        ),
    ),
    "F14": Fault(
        what="retained allocation or manifest of an older run",
        simulated=(
            "core/test_device_machine.py::test_what_belongs_to_another_run_is_ignored_and_counted",
            "core/test_fleet_faults.py::test_a_new_run_on_the_same_topics",
        ),
    ),
    "F15": Fault(
        what="two devices, one id",
        simulated=("runtime/test_claim.py",),
        real=(
            "runtime/test_device_runner.py::test_on_a_broker_that_keeps_silent_the_younger_of_two_leaves_and_the_older_goes_on",
            "storage/test_device_state.py::test_the_same_device_twice_on_one_machine_is_an_id_conflict_with_a_pid",
        ),
    ),
    "F16": Fault(
        what="clock skew, jump, 1970",
        simulated=("transport/test_refusals.py::test_each_failure_of_tls_has_its_mending",),
    ),
    "F17": Fault(
        what="disk full",
        simulated=(
            "storage/test_storage_crashes.py::test_an_error_from_any_call_leaves_old_or_new_and_no_temporary_file",
            "runtime/test_coordinator_runner.py::test_a_full_disk_ends_the_run_with_one_line_and_devices_are_told",
            "storage/test_journal.py::test_a_full_disk_loses_nothing_and_the_next_try_writes_it",
        ),
        real=(
            "storage/test_storage_crashes.py::test_a_really_full_disk_corrupts_nothing_and_all_goes_on_when_there_is_space",
        ),
    ),
    "F18": Fault(
        what="registry, journal or checkpoint cut short or changed",
        simulated=(
            "storage/test_atomic.py::test_every_flipped_bit_is_found",
            "storage/test_atomic.py::test_truncation_at_every_length_is_found",
            "storage/test_checkpoints.py::test_a_damaged_newest_gives_way_to_the_one_before_and_is_named",
            "storage/test_checkpoints.py::test_when_none_is_good_the_error_names_them_and_a_remedy",
            "storage/test_registry.py::test_a_damaged_file_gives_way_to_its_backup_and_is_put_aside",
            "storage/test_journal.py::test_a_changed_bit_is_never_read_as_a_record",
            "storage/test_journal.py::test_a_tail_torn_at_any_byte_leaves_the_whole_records_before_it",
        ),
    ),
    "F19": Fault(
        what="killed during any save",
        simulated=("storage/test_storage_crashes.py::test_death_at_any_call_leaves_old_or_new_and_a_backup",),
        real=(
            "storage/test_storage_crashes.py::test_thirty_kills_during_saves_leave_old_or_new",
            "storage/test_storage_crashes.py::test_two_hundred_kills_during_saves_leave_old_or_new",
        ),
    ),
    "F20": Fault(
        what="msgpack cut short, random, huge, deep",
        simulated=("protocol/test_codec_hostile.py", "protocol/test_wire_fuzz.py"),
    ),
    "F21": Fault(
        what="zip bomb",
        simulated=(
            "protocol/test_codec_hostile.py::test_a_bomb_is_refused_before_it_goes_off",
            "protocol/test_codec_hostile.py::test_a_frame_that_is_not_exactly_one_whole_body_is_refused",
        ),
    ),
    "F22": Fault(
        what="NaN, infinity, fp16 overflow, zero loss",
        simulated=(
            "algorithms/test_halves.py::test_what_is_too_large_becomes_the_largest_half",
            "algorithms/test_compression.py::test_a_number_that_is_not_finite_is_refused_unless_allowed",
            "algorithms/test_aggregation.py::test_losses_are_clamped_before_they_are_inverted",
            "core/test_coordinator_machine.py::test_an_update_without_a_finite_loss_leaves_everything_as_it_was",
            "core/test_coordinator_machine.py::test_a_strategy_that_would_make_an_infinite_model_is_not_followed",
            "core/test_hostile_peers.py::test_a_coordinator_takes_whatever_devices_say",
        ),
    ),
    "F23": Fault(
        what="another model's hash, shape or codec",
        simulated=(
            "core/test_coordinator_machine.py::test_what_cannot_be_applied_is_counted_acked_and_answered_with_the_present_model",
            "core/test_device_machine.py::test_a_task_of_another_layout_ends_it",
            "core/test_device_machine.py::test_a_model_of_another_layout_is_refused",
            "runtime/test_data_modes.py::test_a_model_of_another_layout_is_refused",
        ),
    ),
    "F24": Fault(
        what="another protocol version",
        simulated=(
            "protocol/test_codec.py::test_another_major_version_is_refused_as_such",
            "protocol/test_codec.py::test_the_refusal_of_a_version_says_what_to_do",
            "protocol/test_wire.py::test_another_version_is_refused_at_both_levels",
        ),
    ),
    "F25": Fault(
        what="the broker takes packets of 131,072 bytes",
        simulated=(
            "protocol/test_wire.py::test_no_packet_is_larger_than_the_chunk_and_its_header",
            "protocol/test_wire.py::test_the_default_chunk_fits_every_broker_with_the_longest_topic",
        ),
        real=(
            "runtime/test_broker_limits.py::test_no_packet_is_larger_than_the_broker_takes",
            "transport/test_mqtt_transport.py::test_a_message_too_large_for_the_broker_is_never_sent_and_logged_once",
        ),
    ),
    "F26": Fault(
        what="the access list denies a topic",
        real=("runtime/test_access.py", "field/test_site_broker.py"),
    ),
    "F28": Fault(
        what="slow consumer, overload",
        simulated=(
            "runtime/test_loop.py::test_more_messages_than_the_bound_are_dropped_and_counted",
            "runtime/test_loop.py::test_more_bytes_than_the_bound_are_dropped_and_counted",
            "runtime/test_link.py::test_a_full_queue_slows_the_sender_down_and_loses_nothing",
        ),
        real=("transport/test_mqtt_transport.py::test_a_full_queue_accepts_nothing_more_until_the_broker_answers",),
    ),
    "F29": Fault(
        what="slow-loris device",
        simulated=(
            "protocol/test_chunks.py::test_empty_claims_cannot_lock_anybody_out",
            "protocol/test_chunks.py::test_a_senders_oldest_transfer_gives_way_to_its_newest",
            "protocol/test_chunks.py::test_one_sender_holds_at_most_half_of_the_memory",
        ),
    ),
    "F30": Fault(
        what="straggler 10 to 30 times slower",
        simulated=(
            "core/test_fleet_training.py::test_the_straggler_is_evened_out_once_everybody_was_measured",
            "core/test_fleet_training.py::test_a_size_reaches_its_end_and_stays_there",
            "algorithms/test_allocation.py::test_a_device_too_slow_for_the_target_gets_the_least_size",
            "algorithms/test_allocation.py::test_outliers_are_each_sized_once_and_then_there_is_peace",
        ),
    ),
    "F31": Fault(what="10,000 devices connect at once", simulated=("simulation/test_scale.py",)),
    "F32": Fault(
        what="everybody reconnects at once",
        simulated=("transport/test_backoff.py::test_a_fleet_that_lost_its_broker_together_comes_back_spread_out",),
    ),
    "F33": Fault(what="days of running"),
    "F34": Fault(
        what="a device leaves for ever, or comes back after weeks",
        simulated=(
            "core/test_walks.py::test_who_leaves_gives_its_rows_to_the_others_and_is_dealt_anew_when_it_comes_back",
            "core/test_fleet_faults.py::test_a_wiped_device_in_a_new_run_is_let_in",
        ),
    ),
    "F38": Fault(what="training starves the connection of the processor"),
    "F39": Fault(
        what="SIGTERM, SIGINT",
        simulated=(
            "core/test_device_machine.py::test_drain_ends_the_iteration_says_it_and_quits",
            "runtime/test_device_runner.py::test_an_iteration_that_takes_long_does_not_hold_up_a_device_that_leaves",
        ),
        real=(
            "runtime/test_device_processes.py::test_ctrl_c_leaves_in_good_order_with_its_own_code",
            "runtime/test_device_processes.py::test_a_device_reboots_while_the_coordinator_is_away_and_both_go_on_when_it_is_back",
            "cli/test_commands.py::test_the_first_signal_asks_and_the_exit_code_tells_which_it_was",
        ),
    ),
    "F40": Fault(
        what="a link of 64 kbit/s", simulated=("simulation/test_runs.py::test_a_slow_link_makes_boards_wait",)
    ),
}


def pytest_itemcollected(item):
    """Let `-k` find a test under the numbers of the faults it shows."""
    place = item.nodeid.split("[")[0].removeprefix("tests/")
    for number, fault in COVERED.items():
        if any(place == one or place.startswith(f"{one}::") for one in (*fault.simulated, *fault.real)):
            item.extra_keyword_matches.add(number)


def missing() -> list[str]:
    """What is listed and does not exist."""
    listed = {one for fault in COVERED.values() for one in (*fault.simulated, *fault.real)}
    return sorted(one for one in listed if not _exists(one))


def here() -> dict[str, Fault]:
    """The tests of this folder, by the fault in their names."""
    simulated: dict[str, list[str]] = {}
    real: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_F*.py")):
        of_file, tree = _NUMBERED.fullmatch(path.stem), ast.parse(path.read_text())
        assert of_file, f"{path.name} does not bear its fault's number"
        for name in (one.name for one in tree.body if isinstance(one, ast.FunctionDef)):
            if name.startswith("test_"):
                number = (_NUMBERED.fullmatch(name) or of_file)[1]
                kind = real if is_real(tree, name) else simulated
                kind.setdefault(number, []).append(f"faults/{path.name}::{name}")
    return {
        number: Fault(what="", simulated=tuple(simulated.get(number, ())), real=tuple(real.get(number, ())))
        for number in {*simulated, *real}
    }


def is_real(tree: ast.Module, test: str) -> bool:
    """Whether a test, what it uses of its module's functions and classes, or the module's marks name something real."""
    parts = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    marks = [one for one in tree.body if isinstance(one, ast.Assign) and _words(one.targets[0]) == {"pytestmark"}]
    seen, words = set(), set().union(*map(_words, marks))
    while todo := ({test} | words) & set(parts) - seen:
        seen |= todo
        words |= set().union(*(_words(parts[name]) for name in todo))
    return bool(words & _REAL)


def pretended() -> list[str]:
    """What is listed as real, and names nothing that is."""
    return sorted(one for fault in COVERED.values() for one in fault.real if not _any_real(one))


def _any_real(one: str) -> bool:
    path, _, name = one.partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text())
    tests = [name] if name else [test.name for test in tree.body if isinstance(test, ast.FunctionDef)]
    return any(is_real(tree, test) for test in tests)


def _words(node: ast.AST) -> set[str]:
    """Every name in it."""
    words: set[str] = set()
    for one in ast.walk(node):
        match one:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.Constant(value=str(name)):
                words.add(name)
    return words


def table() -> str:
    """The README."""
    ours = here()
    rows = []
    for number in sorted({*COVERED, *ours}):
        fault, own = COVERED.get(number, Fault(what="")), ours.get(number, Fault(what=""))
        simulated, real = (*own.simulated, *fault.simulated), (*own.real, *fault.real)
        rows.append(f"| {number} | {fault.what} | {_cell(simulated)} | {_cell(real)} |\n")
    return _HEAD + "".join(rows)


def _cell(tests: tuple[str, ...]) -> str:
    files: dict[str, list[str]] = {}
    for one in tests:
        path, _, name = one.partition("::")
        files.setdefault(path, []).append(name)
    words = []
    for path, names in files.items():
        number = len([name for name in names if name])
        words.append(f"[{Path(path).stem}](../{path})" + (f" ({number})" if number > 1 else ""))
    return ", ".join(words) or "-"


def _exists(one: str) -> bool:
    path, _, name = one.partition("::")
    file = ROOT / "tests" / path
    if not file.is_file():
        return False
    return not name or any(
        isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(file.read_text()).body
    )


if __name__ == "__main__":
    README.write_text(table())
