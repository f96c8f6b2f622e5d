"""TLS of the public listener: HTTP/2 and HTTP/1.1 with the deployment's certificate.

Without one it uses a certificate of the development CA, which browsers do not trust.
"""

from gateway.extension import Config, extension
from mesh.settings import MeshSettings


def server(settings: MeshSettings) -> Config:
    certificate, key = settings.gateway_certificate_files
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
                # For TLS 1.2: only suites with forward secrecy and authenticated encryption.
                "cipher_suites": [
                    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
                    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
                    "ECDHE-ECDSA-AES256-GCM-SHA384",
                    "ECDHE-RSA-AES256-GCM-SHA384",
                ],
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate.resolve())},
                    "private_key": {"filename": str(key.resolve())},
                }
            ],
        },
    )
