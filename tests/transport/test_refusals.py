"""Errors that no broker here can be made to give."""

import ssl

import pytest

from hermes_iot.errors import BrokerError
from hermes_iot.transport import refusals
from hermes_iot.transport.address import BrokerAddress

PLAIN = BrokerAddress(host="broker.example", port=1883)
TLS = BrokerAddress(host="broker.example", port=8883, tls=True)


def verification(message):
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_message = message
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (verification("certificate is not yet valid"), "Set this machine's clock: boards without one start in 1970"),
        (verification("certificate has expired"), "Renew the broker's certificate, or set this machine's clock"),
        (verification("unable to get local issuer certificate"), "Give the CA file that signed"),
        (verification("Hostname mismatch, certificate is not valid for 'x'"), "Use the host name"),
        (ConnectionResetError(104, "Connection reset by peer"), "the port does not speak TLS"),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA]"), "TLSV1_ALERT_UNKNOWN_CA"),
    ],
)
def test_each_failure_of_tls_has_its_mending(error, expected):
    line = str(refusals.unreachable(TLS, error, timeout_s=5))
    assert line.startswith("broker mqtts://broker.example:8883 failed the TLS handshake: ")
    assert expected in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("timed out"), "did not answer within 5 s"),
        (OSError(101, "Network is unreachable"), "cannot be reached: Network is unreachable"),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot be reached: Connection reset by peer"),
        (OSError("odd"), "cannot be reached: odd"),
    ],
)
def test_each_failure_of_tcp_has_its_line(error, expected):
    refusal = refusals.unreachable(PLAIN, error, timeout_s=5)
    assert isinstance(refusal, BrokerError)
    assert refusal.exit_code == 3
    assert expected in str(refusal)


@pytest.mark.parametrize("code", range(0x80, 0xA3))
def test_every_reason_code_makes_one_line(code):
    line = str(refusals.refused(PLAIN, code=code, name="Some reason", client_id="pi-1"))
    assert "Some reason" in line
    assert "\n" not in line


def test_a_hang_up_suspects_tls_on_a_plain_port_and_certificates_on_a_tls_port():
    assert "whether it wants mqtts:// instead" in str(refusals.hung_up(PLAIN, why=""))
    assert "our client certificate" in str(refusals.hung_up(TLS, why=""))
