"""The administrators' door: its options, and a daemon that says before it serves what is wrong with them."""

import socket
from pathlib import Path

import pytest

from hsmd.cli.children import ChildFailed
from hsmd.config import Admin, ConfigError, Grpc, Settings, admin_door, load
from hsmd.daemon.certificates import Authority
from hsmd.pb.v1 import ukeys_pb2 as pb
from tests.stand import Stand
from tests.ukeys import Crew

GRPC = Grpc(client_crl=Path("/grpc.crl"), deadline_seconds=7)


def test_the_door_is_like_the_other_one_where_it_says_nothing() -> None:
    door = admin_door(Settings(grpc=GRPC))
    assert (door.certificate, door.key, door.client_ca) == (GRPC.certificate, GRPC.key, GRPC.client_ca)
    assert door.client_crl == GRPC.client_crl
    assert (door.address, door.port, door.deadline_seconds, door.unix) == ("127.0.0.1", 7444, 7, ())


def test_a_ca_of_its_own_has_a_list_of_its_own() -> None:
    own = Admin(client_ca=Path("/own.pem"), certificate=Path("/c"), key=Path("/k"), port=9)
    door = admin_door(Settings(grpc=GRPC, admin=own))
    assert (door.client_ca, door.certificate, door.key, door.port) == (
        *(Path("/own.pem"), Path("/c"), Path("/k")),
        9,
    )
    assert door.client_crl is None  # the other CA's says nothing of its certificates
    own = Admin(client_ca=Path("/own.pem"), client_crl=Path("/own.crl"))
    assert admin_door(Settings(grpc=GRPC, admin=own)).client_crl == Path("/own.crl")
    own = Admin(client_crl=Path("/own.crl"))
    assert admin_door(Settings(grpc=GRPC, admin=own)).client_crl == Path("/own.crl")


def test_a_session_never_outlasts_its_connection() -> None:
    for seconds in (1, 600):
        door = admin_door(Settings(admin=Admin(session_seconds=seconds)))
        assert door.connection_age_seconds > seconds


@pytest.mark.parametrize(
    "line", ["session_seconds = 601", "session_seconds = 0", "threads = 0", "port = 0", "pin = 'x'"]
)
def test_options_are_bounded(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hsmd.toml"
    path.write_text(f"[admin]\n{line}\n")
    with pytest.raises(ConfigError, match="admin"):
        load(path, {})


def test_a_door_that_can_not_open_is_said_before_anything_is_served(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    crew = Crew(stand, tmp_path)
    try:
        with socket.create_server(("127.0.0.1", crew.port)):
            with pytest.raises(ChildFailed):
                stand.start(gateway=False)
            assert "admin: can't listen on" in stand.log()
        stand.settings["HSMD__ADMIN__CERTIFICATE"] = str(tmp_path / "none.pem")
        with pytest.raises(ChildFailed):
            stand.start(gateway=False)
        assert "admin: the certificates can't be used" in stand.log()
    finally:
        stand.stop()


def test_administrators_have_a_ca_of_their_own_if_they_like(tmp_path: Path) -> None:
    """And who has a certificate of the other one may not knock; nor is there a door where none is wanted."""
    stand = Stand(tmp_path)
    (tmp_path / "people").mkdir()
    people = Authority(tmp_path / "people", "people")
    crew = Crew(stand, tmp_path, CLIENT_CA=str(people.pair.certificate))
    alice = crew.soft("alice", "administrator")
    crew.enrol(0, 0, alice)
    try:
        stand.start(gateway=False)
        with crew.client(alice, pair=people.client("alice", "alice")) as client:
            assert len(client.ukeys.ListUkeys(pb.ListUkeysRequest()).ukeys) == 1
        with (
            crew.client(alice, deadline=3) as client,
            pytest.raises(Exception, match=r"UNAVAILABLE|DEADLINE"),
        ):
            client.begin_login("hsmd.v1.Ukeys")
        stand.stop()
        stand.settings["HSMD__ADMIN__ENABLED"] = "false"
        stand.start(gateway=False)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", crew.port), timeout=5)
    finally:
        stand.stop()
