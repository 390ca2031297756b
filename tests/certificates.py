"""Certificates that last for a test run, and a private server that has one."""

from __future__ import annotations

from pathlib import Path

import trustme
from servers import HOST, PrivateServer


class Authority:
    """A certificate authority whose files lie in a folder that the caller names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def sign(self, name: str) -> tuple[Path, Path]:
        """Make a certificate for a host, with its key; return both files."""
        issued = self._authority.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key


class CertifiedServer(PrivateServer):
    """A private server with a certificate for its address, which verifies its clients' where they have one."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "certificates")
        certificate, key = self.authority.sign(HOST)
        super().__init__(folder, f"--ssl-ca={self.authority.file}", f"--ssl-cert={certificate}", f"--ssl-key={key}")
