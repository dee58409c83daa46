"""The command line. A command parses, calls, and maps errors to exit codes; what it calls works without it.

Values come from the command line, else ``HERMES_*`` variables, else ``hermes.toml``, else the defaults. Every error
is one line on stderr: what, why, and what mends it. With ``--json`` stdout holds exactly one envelope, also then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hermes_iot.errors import HermesError

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code (see `hermes_iot.errors`, and 130 after Ctrl-C)."""
    import typer

    from hermes_iot.cli import files
    from hermes_iot.cli.app import command
    from hermes_iot.errors import HermesError, UsageError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        root = command()
        defaults, constants = files.read(arguments, root)
        outcome = root.main(
            args=arguments, prog_name="hermes-iot", standalone_mode=False, default_map=defaults, obj=constants
        )
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "hermes-iot"
        return _fail(
            UsageError(" ".join(error.format_message().split()).rstrip("."), mend=f"See {path} --help"), arguments
        )
    except HermesError as error:
        return _fail(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return outcome if isinstance(outcome, int) else 0


def _fail(error: HermesError, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        import json

        envelope = {
            "schema": "hermes-iot/error/1",
            "ok": False,
            "error": {"kind": type(error).__name__, "what": error.what, "why": error.why, "mend": error.mend},
            "exit_code": error.exit_code,
        }
        sys.stdout.write(json.dumps(envelope) + "\n")
    sys.stderr.write(f"hermes-iot: {error}\n")
    return error.exit_code
