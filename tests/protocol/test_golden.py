"""The exact bytes of protocol version 1, frozen in ``tests/support/golden/v1``.

A fleet is never updated all at once, so the bytes of v1 must not change under boards that already speak it. These
files are right to change in one case only: an *optional* field (one with a default) was added, and old bytes still
decode. A field renamed, removed, retyped or reordered, or another packing, is version 2: a new folder beside this one,
and v1 stays as it is. A new kind of message adds a file.

To write them anew on purpose: ``pytest tests/protocol/test_golden.py --golden-update``, then look at every byte of the
difference. What is already there and does not decode any more is not overwritten.

``Update-zstd.bin`` is compared by what it decodes to, never by its bytes: zstd may compress better one day.
"""

from dataclasses import MISSING, fields, replace
from pathlib import Path

import msgpack
import pytest

from hermes_iot.protocol.messages import Chunk, Update
from tests.protocol.bending import EVERY_KIND, by_name, decode, encode, sample
from tests.protocol.samples import REPETITIVE_BODY, SAMPLES
from tests.protocol.strategies import JSON_KINDS

FOLDER = Path(__file__).parents[1] / "support" / "golden" / "v1"
PACKED = FOLDER / "Update-zstd.bin"
#: Written before an update named its device.
PACKED_MESSAGE = replace(SAMPLES[Update], device="", parameters=64, body=REPETITIVE_BODY)


def path_of(kind):
    return FOLDER / f"{kind.__name__}.{'json' if kind in JSON_KINDS else 'bin'}"


def written(path, payload, kind, config):
    """The file's bytes; with ``--golden-update`` they become `payload`, if the old ones can still be read."""
    if config.getoption("--golden-update", default=False):
        if path.exists():
            decode(path.read_bytes(), kind)
        path.write_bytes(payload)
    return path.read_bytes()


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_todays_encoder_writes_the_bytes_of_v1(kind, pytestconfig):
    payload = encode(sample(kind), compress=False)
    assert written(path_of(kind), payload, kind, pytestconfig) == payload


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_todays_decoder_reads_the_bytes_of_v1(kind):
    assert decode(path_of(kind).read_bytes(), kind) == sample(kind)


def test_a_packed_body_of_v1_is_read(pytestconfig):
    payload = encode(PACKED_MESSAGE)
    if not PACKED.exists():
        written(PACKED, payload, Update, pytestconfig)
    frozen = PACKED.read_bytes()
    assert msgpack.unpackb(frozen)["packing"] == "zstd"
    assert decode(frozen, Update) == PACKED_MESSAGE


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_no_field_of_a_sample_stands_at_its_default(kind):
    """Else the frozen bytes would not show that the field is read at all."""
    optional = {f.name: f.default for f in fields(kind) if f.default is not MISSING and f.name != "v"}
    assert not [name for name, default in optional.items() if getattr(sample(kind), name) == default]


def test_the_folder_holds_these_files_and_no_others():
    assert {path.name for path in FOLDER.iterdir()} == {path_of(kind).name for kind in EVERY_KIND} | {PACKED.name}
    assert path_of(Chunk).exists()
