"""Whether a Ray cluster can be at an address, found out before Ray is asked.

Ray itself tries for 100 s to reach a port that nobody listens at.
"""

from __future__ import annotations

import os
import re
import socket
import threading

import ray

from raylit.errors import ConfigError
from raylit.launch.on_ray import private
from raylit.runtime.secrets import without_secrets

ANSWER_S = 5.0  # for a name to be looked up, and again for the port to answer
START = "Start one with `ray start --head`; other nodes join with `ray start --address=...`."
# The first frames of a client and, in its fourth byte, of a server of HTTP/2, which is what Ray
# speaks (RFC 9113, 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # what Ray takes for this machine


def check_address(address: str) -> str:
    """Return the `host:port` of the cluster that RAY_ADDRESS or `--ray.address` means.

    Raises:
        ConfigError: it is no address, or no Ray cluster answers there.
    """
    what = f"RAY_ADDRESS (--ray.address) is {without_secrets(address)!r}"
    scheme, _, rest = address.rpartition("://")
    if scheme == "ray":
        host = re.split(r"[:/?]", rest.rpartition("@")[2])[0]
        raise ConfigError(
            f"{what}, an address of Ray Client, through which no fit can be run. Give the address"
            f" of the head node itself ({host}:6379), or send the script there:"
            " `ray job submit --address http://HEAD:8265 -- python train.py`."
        )
    if scheme:
        raise ConfigError(
            f"{what}, an address of a web page. The dashboard's address is for `ray job submit"
            " --address`; for a fit from here give host and port of the head node, as `ray start"
            " --head` prints them: 10.0.0.1:6379."
        )
    if address == "auto":
        found = private.running_cluster()
        if found is None:
            raise ConfigError(f"{what}, but no Ray cluster runs on this machine. {START}")
        return check_address(found)
    host, port = _host_and_port(address, what)
    problem = _bounded(lambda: _problem(host, port))
    if problem is not None:
        raise ConfigError(f"{what}, but no Ray cluster answers there: {problem}. {START}")
    return address


def check_cluster_of_environment() -> None:
    """Find out whether the cluster that RAY_ADDRESS names answers, if it is still to be joined.

    Raises:
        ConfigError: it does not, or it is no address.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local" and not ray.is_initialized():
        check_address(address)


def is_on_loopback(address: str) -> bool:
    """Tell whether a cluster listens on this machine alone, as those do that raylit starts.

    Ray takes `127.0.0.1:PORT` for the machine's own address, where such a cluster is not found.

    Args:
        address: `host:port` of a cluster that answers.
    """
    host, port = _host_and_port(address, f"RAY_ADDRESS is {address!r}")
    if host not in LOOPBACK:
        return False
    own = private.own_address()
    return own not in LOOPBACK and _problem(own, port) is not None


def _host_and_port(address: str, what: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError(
            f"{what}, which is no address. Give host and port of the head node (10.0.0.1:6379), or"
            " `auto` for the cluster that runs on this machine, or leave it out to have one"
            " started."
        )
    return match[1] or match[2], int(match[3])


def _bounded(find: object) -> str | None:
    """Return the result of `find`, or a text if it takes too long, as unknown names may."""
    found: list[str | None] = []
    assert callable(find)
    thread = threading.Thread(target=lambda: found.append(find()), daemon=True)
    thread.start()
    thread.join(1.6 * ANSWER_S)
    return found[0] if found else f"nothing answered within {1.6 * ANSWER_S:g} s"


def _problem(host: str, port: int) -> str | None:
    """Return why no Ray cluster can be there, or None."""
    try:
        with socket.create_connection((host, port), ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return None  # what follows is encrypted
            connection.settimeout(ANSWER_S)
            connection.sendall(PREFACE)
            first = connection.recv(9)
    except TimeoutError:
        return f"nothing answered within {ANSWER_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    if len(first) < 4 or first[3] != SETTINGS:
        return "what listens there is another kind of server"
    return None
