"""HTTPS: the certificate that a worker serves with, read when it starts, so that SIGHUP takes a new one up.

TLS 1.2 and above, as Python's defaults have it. A connection that has not shaken hands within 60 s (uvloop's time) is
closed, and so is one that speaks plain HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from serving.errors import SettingsRefused
from serving.settings import Settings


def refuse_unusable(settings: Settings) -> None:
    """Raises SettingsRefused where certificate and key are not two of a kind that can be read."""
    if settings.tls_key and not settings.tls_cert:
        raise SettingsRefused("COPPICE_TLS_KEY: is set, and COPPICE_TLS_CERT is not")
    if not settings.tls_cert:
        return
    for name, path in (("COPPICE_TLS_CERT", settings.tls_cert), ("COPPICE_TLS_KEY", settings.tls_key)):
        try:
            _ = path and Path(path).read_bytes()
        except OSError as refused:
            raise SettingsRefused(f"{name}: {path} can't be read: {refused.strerror}") from None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None, password=_no_password)
    except (ssl.SSLError, ValueError) as refused:
        why = getattr(refused, "reason", "") or str(refused)
        raise SettingsRefused(f"COPPICE_TLS_CERT: {settings.tls_cert} and its key can't be used: {why}") from None


def _no_password() -> str:
    """Instead of OpenSSL's prompt, which would wait for a terminal."""
    raise ValueError("the key is encrypted, and there is nobody to ask")
