"""Addresses as people write them, and the errors they get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import UsageError
from hermes_iot.transport.address import BrokerAddress, TlsOptions

EXAMPLE = "Write it like mqtt://192.168.1.10:1883 or mqtts://device-1@broker.example.org"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://broker", BrokerAddress(host="broker", port=1883)),
        ("mqtts://broker", BrokerAddress(host="broker", port=8883, tls=True)),
        ("MQTT://Broker.local:1", BrokerAddress(host="Broker.local", port=1)),
        ("mqtts://amy@10.0.0.7:65535", BrokerAddress(host="10.0.0.7", port=65535, tls=True, username="amy")),
        ("mqtt://[fd00::1]", BrokerAddress(host="fd00::1", port=1883)),
        ("mqtt://a%20b@[::1]:1884", BrokerAddress(host="::1", port=1884, username="a b")),
        ("mqtt://[fe80::1%25eth0]:1883", BrokerAddress(host="fe80::1%eth0", port=1883)),
        ("mqtt://my_service.internal.", BrokerAddress(host="my_service.internal.", port=1883)),
    ],
)
def test_an_address_is_read(text, expected):
    assert BrokerAddress.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has no scheme"),
        ("broker:1883", "it has no scheme"),
        ("http://broker", "the scheme must be mqtt or mqtts"),
        ("mqtt://", "the host is missing"),
        ("mqtt://:1883", "the host is missing"),
        ("mqtt://broker:", "a port is a number from 1 to 65535"),
        ("mqtt://broker:0", "a port is a number from 1 to 65535"),
        ("mqtt://broker:65536", "a port is a number from 1 to 65535"),
        ("mqtt://broker:0000099999", "a port is a number from 1 to 65535"),
        ("mqtt://broker:\uff11\uff18", "a port is a number from 1 to 65535"),
        ("mqtt://broker:-1", "a port is a number from 1 to 65535"),
        ("mqtt://broker:1883/", "nothing may follow host and port"),
        ("mqtt://broker/topic", "nothing may follow host and port"),
        ("mqtt://broker?x=1", "nothing may follow host and port"),
        ("mqtt://fd00::1:1883", "an IPv6 address stands in brackets"),
        ("mqtt://[fd00::1", "an IPv6 address stands in brackets"),
        ("mqtt://[fd00::1]1883", "an IPv6 address stands in brackets"),
        ("mqtt://[fd00::zz]", "that is no host name and no IP address"),
        ("mqtt://[broker]", "brackets are for IPv6 addresses"),
        ("mqtt://bro ker", "that is no host name and no IP address"),
        ("mqtt://-broker", "that is no host name and no IP address"),
        ("mqtt://a..b", "that is no host name and no IP address"),
        ("mqtt://bröker", "that is no host name and no IP address"),
        (f"mqtt://{'a' * 64}", "that is no host name and no IP address"),
        (f"mqtt://{'a.' * 200}a", "that is no host name and no IP address"),
        ("mqtt://@broker", "the user name is empty"),
        ("mqtt://a%00b@broker", "the user name is empty or has control characters in it"),
    ],
)
def test_a_malformed_address_gets_one_line_with_the_reason_and_an_example(text, why):
    with pytest.raises(UsageError) as caught:
        BrokerAddress.parse(text)
    line = str(caught.value)
    assert why in line
    assert line.endswith(EXAMPLE)
    assert "\n" not in line
    assert len(line) < 300
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    ["mqtt://amy:s3cret@broker", "mqtts://amy:s3cret@broker:99999", "mqtt://:s3cret@broker", "mqtt://a:s3cret@x@[::1]"],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(text):
    with pytest.raises(UsageError) as caught:
        BrokerAddress.parse(text)
    line = str(caught.value)
    assert "holds a password" in line
    assert "HERMES_PASSWORD" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("text", ["amy:s3cret@broker", "http://amy:s3cret@broker", "s3cret@broker://x@"])
def test_other_errors_do_not_repeat_a_password_either(text):
    with pytest.raises(UsageError) as caught:
        BrokerAddress.parse(text)
    assert "s3cret" not in str(caught.value)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
users = st.one_of(st.none(), st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20))


@given(host=hosts, port=st.integers(1, 65_535), tls=st.booleans(), username=users)
def test_an_address_survives_being_written_and_read(host, port, tls, username):
    address = BrokerAddress(host=host, port=port, tls=tls, username=username)
    assert BrokerAddress.parse(address.url) == address
    assert str(address) == address.url


@given(st.one_of(st.text(), st.text().map("mqtt://{}".format), st.text().map("mqtts://x@{}".format)))
def test_any_text_is_an_address_or_a_usage_error(text):
    try:
        address = BrokerAddress.parse(text)
    except UsageError:
        return
    assert BrokerAddress.parse(address.url) == address


def test_certificate_and_key_belong_together(tmp_path):
    with pytest.raises(UsageError, match="the key is missing"):
        TlsOptions(cert_file=tmp_path / "cert.pem")
    with pytest.raises(UsageError, match="the certificate is missing"):
        TlsOptions(key_file=tmp_path / "key.pem")
