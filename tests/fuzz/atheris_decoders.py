"""Coverage-guided fuzzing of one decoder, where atheris is installed (it is no dependency of ours):

    python -m tests.fuzz.atheris_decoders NAME [-runs=N] [other options of libFuzzer]

It begins from the corpus; what it finds interesting is kept beside the process, not in the repository. An input that
ends it is written to ``crash-...`` in the working directory: mend the decoder, and put the input into corpus/NAME.
"""

from __future__ import annotations

import sys
import tempfile
from random import Random

import atheris

with atheris.instrument_imports(include=["hermes_iot"]):
    from tests.fuzz.decoders import CORPUS, DECODERS


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in DECODERS:
        sys.exit(f"{name!r} is no decoder; there are {', '.join(DECODERS)}")
    decoder = DECODERS[name]

    def one(data: bytes) -> None:
        try:
            decoder.decode(data)
        except decoder.refuses:
            return

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time as the format would have it, else as libFuzzer would."""
        bent = decoder.bend(data, Random(seed)) if seed % 2 else bytes(atheris.Mutate(data, max_size))
        return bent[:max_size]

    with tempfile.TemporaryDirectory(prefix="hermes-atheris-") as found:
        atheris.Setup([sys.argv[0], *options, found, str(CORPUS / name)], one, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
