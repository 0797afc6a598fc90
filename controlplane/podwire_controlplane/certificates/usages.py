"""The key usages of a CertificateSigningRequest, and what each means in a certificate (RFC 5280 sections 4.2.1.3 and
4.2.1.12; certificates.k8s.io/v1 KeyUsage). Pure data.
"""

from __future__ import annotations

from typing import Final

SIGNATURE, ENCIPHERMENT = "digital signature", "key encipherment"
SERVER_AUTH, CLIENT_AUTH = "server auth", "client auth"
# usage -> the field of cryptography's x509.KeyUsage
KEY: Final = {
    "signing": "digital_signature",
    SIGNATURE: "digital_signature",
    "content commitment": "content_commitment",
    ENCIPHERMENT: "key_encipherment",
    "key agreement": "key_agreement",
    "data encipherment": "data_encipherment",
    "cert sign": "key_cert_sign",
    "crl sign": "crl_sign",
    "encipher only": "encipher_only",
    "decipher only": "decipher_only",
}
# usage -> the object identifier of the extended key usage
EXTENDED: Final = {
    "any": "2.5.29.37.0",
    SERVER_AUTH: "1.3.6.1.5.5.7.3.1",
    CLIENT_AUTH: "1.3.6.1.5.5.7.3.2",
    "code signing": "1.3.6.1.5.5.7.3.3",
    "email protection": "1.3.6.1.5.5.7.3.4",
    "s/mime": "1.3.6.1.5.5.7.3.4",
    "ipsec end system": "1.3.6.1.5.5.7.3.5",
    "ipsec tunnel": "1.3.6.1.5.5.7.3.6",
    "ipsec user": "1.3.6.1.5.5.7.3.7",
    "timestamping": "1.3.6.1.5.5.7.3.8",
    "ocsp signing": "1.3.6.1.5.5.7.3.9",
    "microsoft sgc": "1.3.6.1.4.1.311.10.3.3",
    "netscape sgc": "2.16.840.1.113730.4.1",
}
ALL: Final = frozenset((*KEY, *EXTENDED))
