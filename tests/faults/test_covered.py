"""The list of faults and their tests is true."""

import re
import subprocess
import sys

from tests.faults import covered

#: What reliability.md asks for here; the others concern access, certificates, scale and trust.
ASKED = [f"F{number:02}" for number in (*range(1, 26), 28, 29, 30, 33, 38, 39, 40)]


def test_every_fault_that_is_asked_for_has_a_test_and_every_listed_test_exists():
    assert covered.missing() == []
    ours = covered.here()
    shown = {number for number, fault in covered.COVERED.items() if fault.simulated or fault.real} | set(ours)
    assert [number for number in ASKED if number not in shown] == []


def test_what_is_called_real_is():
    assert covered.pretended() == []
    ours = covered.here()
    # The broker's marker, a broker of one's own, a process: and machines driven by hand are none of these.
    assert "faults/test_F20_hostile_bytes.py::test_F24_another_protocol_version_is_refused_as_such_on_both_sides" in (
        ours["F24"].real
    )
    assert any("half_an_update" in one for one in ours["F07"].real)
    assert all(one.startswith("faults/test_F11_parts.py") for one in ours["F11"].simulated)
    assert not any("F11_parts" in one for one in ours["F11"].real)


def test_the_readme_is_as_it_would_be_written_now():
    assert covered.README.read_text() == covered.table(), "python -m tests.faults.covered writes it anew"


def test_a_faults_number_finds_its_tests_wherever_they_stand():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-k", "F11"]
    command += [f"tests/{name}.py" for name in ("protocol/test_chunks", "protocol/test_wire", "core/test_fleet_faults")]
    said = subprocess.run(command, cwd=covered.ROOT, capture_output=True, text=True, check=True, timeout=100).stdout
    files = set(re.findall(r"^tests/(\S+?)::", said, re.MULTILINE))
    assert files == {"protocol/test_chunks.py", "core/test_fleet_faults.py"}
    assert {line.partition("::")[2] for line in said.splitlines() if "fleet_faults" in line} == {
        "test_a_lossy_duplicating_bus"
    } or "test_a_lossy_duplicating_bus[" in said
