"""The command line. A command parses, calls, and maps errors to exit codes; what it calls works without it.

Values come from the command line, else ``HERMES_*`` variables, else ``hermes.toml``, else the defaults. Every error
is one line on stderr: what, why, and what mends it. With ``--json`` stdout holds exactly one envelope, also then.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from hermes_iot.errors import HermesError

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code (see `hermes_iot.errors`, and 130 after Ctrl-C)."""
    from hermes_iot.cli.signals import Terminated, terminable

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with terminable():
            code = _run(arguments)
    except Terminated:
        code = 0
    if argv is None:
        _abandon_training(code)
    return code


def _run(arguments: list[str]) -> int:
    import typer

    from hermes_iot.cli import files
    from hermes_iot.cli.app import command
    from hermes_iot.errors import HermesError, UsageError

    try:
        root = command()
        defaults, constants = files.read(arguments, root)
        outcome = root.main(
            args=arguments, prog_name="hermes-iot", standalone_mode=False, default_map=defaults, obj=constants
        )
    except typer.TyperException as error:
        what, mend = _worded(error)
        return _fail(UsageError(what, mend=mend), arguments)
    except HermesError as error:
        return _fail(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - a bug is an error with a line and an exit code, too
        import traceback

        traceback.print_exc()
        bug = HermesError(
            "this is a bug in hermes-iot",
            why=f"{type(error).__name__}: {error}",
            mend="Please report it with the lines above",
        )
        return _fail(bug, arguments)
    return outcome if isinstance(outcome, int) else 0


def _worded(error: typer.TyperException) -> tuple[str, str]:
    """What was wrong with the words given, and where help is.

    Typer names an option's variable whether or not the value came from there; we say where it came from.
    """
    what = re.sub(r" \(env var: '[A-Z_]*'\)", "", " ".join(error.format_message().split()).rstrip("."))
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None:
        return what, "See hermes-iot --help"
    source = context.get_parameter_source(option.name) if option is not None else None
    origin = {"ENVIRONMENT": getattr(option, "envvar", ""), "DEFAULT_MAP": "the configuration file"}.get(
        getattr(source, "name", "")
    )
    return f"{what} (from {origin})" if origin else what, f"See {context.command_path} --help"


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


def _abandon_training(code: int) -> None:
    """End the process here and now if an iteration is still running in it.

    On a small board one takes minutes. When the interpreter goes it ends its threads inside torch's C++, which takes
    that for a crash ("terminate called without an active exception", SIGABRT instead of our exit code).
    """
    from hermes_iot.cli.signals import still_training

    if still_training():
        import logging

        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
