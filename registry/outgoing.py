"""One signed HTTP call to another system of the hospital: to addresses that are allowed, and never redirected.

The name is resolved once and the connection goes to the very address that was checked, so that a name server cannot
answer with a harmless address first and with another one afterwards (DNS rebinding).
"""

import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TIMEOUT_SECONDS = 10.0
# For the whole call: one who answers a byte at a time must not keep a worker of the queue.
LONGEST_SECONDS = 30.0
_PORTS = {"http": 80, "https": 443}
# The only public IPv6 there is: not the old site-local addresses, nor those that carry an IPv4 address (::/96, NAT64).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Within that, IPv6 that carries an IPv4 address which its routers unwrap: 6to4, Teredo.
_CARRIERS = tuple(ipaddress.ip_network(text) for text in ("2002::/16", "2001::/32"))


class OutgoingError(Exception):
    """The call was not made, or not answered as it should. The message says why; status: of the answer, 0 for none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Target:
    """Where a call goes: the name for TLS and the Host header, and the address that was checked."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def read_networks(texts: Sequence[str]) -> list[Network]:
    """Networks as they are written in the settings, 10.20.0.0/16. Raises OutgoingError, naming the one that is none."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            raise OutgoingError(
                f"WEBHOOK_PRIVATE_NETWORKS names {text!r}, which is no network: {error}. Write each as 10.20.0.0/16 "
                "or as one address, with commas between."
            ) from error
    return networks


def parse(url: str) -> SplitResult:
    """The parts of an address that may be called at all: http or https, no credentials. Raises OutgoingError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise OutgoingError(f"{url!r} is no address: {error}.") from error
    if parts.scheme not in _PORTS:
        raise OutgoingError("The address begins with http:// or https://.")
    if not parts.hostname:
        raise OutgoingError("The address names no host.")
    if parts.username is not None or parts.password is not None:
        raise OutgoingError("The address holds a user name or password; the signature is what proves who calls.")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise OutgoingError("The address holds blanks or control characters.")
    return parts


def resolve(url: str, listed: Sequence[Network]) -> Target:
    """Look the host up, once, and check every address it has. Raises OutgoingError.

    listed: the networks that may be called although they are not public.
    """
    parts = parse(url)
    port = parts.port or _PORTS[parts.scheme]
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OutgoingError(f"The host {host} is not known: {error}.") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    for address in addresses:
        if not is_allowed(ipaddress.ip_address(address), listed):
            raise OutgoingError(
                f"{host} is {address}, which is no public address. Networks of your own have to be listed in "
                "WEBHOOK_PRIVATE_NETWORKS."
            )
    if not addresses:
        raise OutgoingError(f"The host {host} has no address.")
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    return Target(parts.scheme, host, port, path, addresses[0])


def is_allowed(address: Address, listed: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the networks that are listed."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address.version == network.version and address in network for network in listed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        is_public = address in _GLOBAL_UNICAST and not any(address in carrier for carrier in _CARRIERS)
    else:
        is_public = not address.is_multicast
    return is_public and address.is_global


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """`t=<Unix time>,v1=<hex>`: HMAC-SHA256 of "<time>.<body>", as receivers compute it again.

    The time is signed too, so that a call that was overheard cannot be sent again later.
    """
    content = f"{timestamp}.".encode() + body
    return f"t={timestamp},v1={hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()}"


def send(url: str, body: bytes, headers: dict[str, str], listed: Sequence[Network]) -> int:
    """POST `body`, as JSON unless `headers` say otherwise, and return the status of the answer, one of 200 to 299.

    Raises OutgoingError for everything else.
    """
    target = resolve(url, listed)
    connection = _Pinned(target)
    deadline = threading.Timer(LONGEST_SECONDS, connection.abort)
    deadline.daemon = True
    deadline.start()
    try:
        connection.request("POST", target.path, body, {"Content-Type": "application/json", **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OutgoingError(f"{target.host} did not answer: {error or type(error).__name__}.") from error
    finally:
        deadline.cancel()
        connection.close()
    if 300 <= status < 400:
        raise OutgoingError(f"{target.host} answered {status}, a redirect; redirects are not followed.", status)
    if not 200 <= status < 300:
        raise OutgoingError(f"{target.host} answered {status}.", status)
    return status


class _Pinned(http.client.HTTPConnection):
    """Connects to the address that was checked; the name stays for the Host header and the certificate."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.host, target.port, timeout=TIMEOUT_SECONDS)
        self._target = target
        # The Host header leaves the port out where it is the scheme's own.
        self.default_port = _PORTS[target.scheme]

    def connect(self) -> None:
        self.sock = socket.create_connection((self._target.address, self._target.port), TIMEOUT_SECONDS)
        if self._target.scheme == "https":
            context = ssl.create_default_context()
            # The handshake comes after it has its name here, so that `abort` ends that as well.
            self.sock = context.wrap_socket(self.sock, server_hostname=self._target.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def abort(self) -> None:
        """End the call from another thread: whoever waits for the other side then reads the end of the answer."""
        connected = self.sock
        if connected is not None:
            with contextlib.suppress(OSError):
                # Not the method of SSL sockets, which may not be used while another thread reads.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
