"""From options to connections. paho is loaded by the first connection, not by parsing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hermes_iot.errors import UsageError
from hermes_iot.transport.address import BrokerAddress, TlsOptions

if TYPE_CHECKING:
    from hermes_iot.transport.base import Transport, Will


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """How to reach the broker, checked but not yet tried."""

    address: BrokerAddress
    tls: TlsOptions | None
    password: str | None

    @classmethod
    def of(
        cls,
        url: str,
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        password_file: Path | None = None,
    ) -> BrokerOptions:
        """Read what the person gave.

        Raises:
            UsageError: a malformed address, or files that do not fit.
        """
        for path in (ca_file, cert_file, key_file, password_file):
            if path is not None and not path.is_file():
                raise UsageError(
                    f"there is no file {path}", mend="Check the paths of CA, certificate, key and password"
                )
        tls = None
        if ca_file is not None or cert_file is not None or key_file is not None:
            tls = TlsOptions(ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        password = os.environ.get("HERMES_PASSWORD")
        if password_file is not None:
            try:
                password = password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"password file {password_file} cannot be read", why=str(error)) from error
        return cls(address=BrokerAddress.parse(url), tls=tls, password=password)

    def connector(
        self, *, session_expiry_s: int = 0, manual_ack: bool = False
    ) -> Callable[[str, Will | None], Transport]:
        """What the runners ask for a connection.

        `manual_ack` is for who says himself what is safe with him. Who comes without a will only takes a look, and leaves no session behind: the broker would queue for it.
        """

        def connect(client_id: str, will: Will | None) -> Transport:
            from hermes_iot.transport.mqtt import MqttTransport

            return MqttTransport(
                self.address,
                client_id=client_id,
                will=will,
                session_expiry_s=session_expiry_s if will is not None else 0,
                password=self.password,
                tls=self.tls,
                manual_ack=manual_ack and will is not None,
            )

        return connect
