"""A Mosquitto on broker/mosquitto.conf and broker/acl as they are shipped, but for the port and the places."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from hermes_iot.errors import BrokerError
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.mqtt import MqttTransport
from tests.transport.inbox import Inbox

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 10.0
PASSWORDS = {name: f"word-of-{name}" for name in ("coordinator", "viewer", "pi-01", "pi-02")}


class SiteBroker(MosquittoBroker):
    """Runs the shipped configuration. What is substituted must be there word for word, or this test tests nothing."""

    def _configuration(self, port):
        text = (ROOT / "broker" / "mosquitto.conf").read_text()
        substitutes = {
            "listener 1883": f"listener {port} 127.0.0.1",
            "password_file /etc/mosquitto/passwd": "password_file passwd",
            "acl_file /etc/mosquitto/acl": "acl_file acl",
            "persistence_location /var/lib/mosquitto/": f"persistence_location {self._directory}/",
            "pid_file /run/mosquitto/mosquitto.pid": f"pid_file {self._directory}/mosquitto.pid",
            "log_dest file /var/log/mosquitto/mosquitto.log": "log_dest stderr",
        }
        lines = text.splitlines()
        for shipped, here in substitutes.items():
            assert lines.count(shipped) == 1, f"{shipped!r} is not a line of broker/mosquitto.conf"
            lines[lines.index(shipped)] = here
        return "\n".join([*lines, ""])

    def login(self, name, *, client_id=None, password=None, will=None):
        """A connected transport of this user, and what it hears."""
        inbox = Inbox()
        address = BrokerAddress(host=self.address.host, port=self.address.port, username=name)
        password = PASSWORDS[name] if password is None and name is not None else password
        transport = MqttTransport(address, client_id=client_id or name or "nobody", password=password, will=will)
        try:
            transport.start(inbox, timeout_s=PATIENCE_S)
        except BrokerError:
            transport.close()
            raise
        return transport, inbox


@pytest.fixture(scope="session")
def password_file(tmp_path_factory):
    """What `mosquitto_passwd -U` makes of lines `name:password`, as broker/README.md has it."""
    path = tmp_path_factory.mktemp("passwd") / "passwd"
    path.write_text("".join(f"{name}:{password}\n" for name, password in PASSWORDS.items()))
    tool = shutil.which("mosquitto_passwd")
    assert tool is not None, "mosquitto_passwd comes with mosquitto and is not on PATH"
    subprocess.run([tool, "-U", path], check=True, capture_output=True, timeout=PATIENCE_S)
    hashed = path.read_text()
    assert not any(password in hashed for password in PASSWORDS.values())
    return hashed


@pytest.fixture
def site(password_file):
    files = {"passwd": password_file, "acl": (ROOT / "broker" / "acl").read_text()}
    with SiteBroker(files=files) as broker:
        yield broker


@pytest.fixture
def free_port():
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
