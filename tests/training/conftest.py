import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_iot.domain import TrainJob


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's data sets, cache or proxies."""
    monkeypatch.delenv("HERMES_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_job() -> Callable[..., TrainJob]:
    def make(start: np.ndarray, **changes: Any) -> TrainJob:
        values: dict[str, Any] = {
            "start": start,
            "samples": 100,
            "batch": 16,
            "epochs": 1,
            "learning_rate": 0.1,
            "sampling": "fresh",
            "gate_split": "fresh",
            "rows": (),
            "shard": "",
            "key": (1, 2, 3),
            "slice_key": (9,),
        }
        return TrainJob(**(values | changes))

    return make


@pytest.fixture
def real_data() -> Path:
    """The published data sets: HERMES_TEST_DATA, or a folder beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("HERMES_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"NO REAL DATA: set HERMES_TEST_DATA to a folder with mnist/, cifar-10/ and occupancy/ ({folder})")
    return folder


class Site:
    """A web site on loopback: path -> body; notes what was asked for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str | None]] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                body = site.bodies.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                for name, value in ({"Content-Length": str(len(body))} | site.headers.get(self.path, {})).items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the reader may have seen enough
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join(timeout=5)
    assert not thread.is_alive()
