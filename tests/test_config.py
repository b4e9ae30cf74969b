"""Settings: the sample file shows them all, and nothing wrong is taken silently."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from hsmd.config import ConfigError, Keystore, Settings, UnixListener, load

SAMPLE = Path(__file__).parent.parent / "conf" / "hsmd.toml"
_OPTION = re.compile(r"^#(\[?[a-z_]+(\]$| = ))")


def sample() -> str:
    """The sample file with its options switched on; prose and examples stay comments."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line[1:] if _OPTION.match(line) else line for line in lines)


def option_paths(kind: Any, before: str = "") -> set[str]:
    hints = typing.get_type_hints(kind)
    paths: set[str] = set()
    for name, hint in hints.items():
        paths |= option_paths(hint, f"{name}.") if dataclasses.is_dataclass(hint) else {before + name}
    return paths


def written(folder: Path, text: str) -> Path:
    path = folder / "hsmd.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sample_holds_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, sample()), {}) == Settings()


def test_sample_as_shipped_sets_nothing() -> None:
    assert tomllib.loads(SAMPLE.read_text(encoding="utf-8")) == {}
    assert load(SAMPLE, {}) == Settings()


def test_sample_names_every_option() -> None:
    tree = tomllib.loads(sample())
    shown = {
        f"{name}.{option}" if isinstance(value, dict) else name
        for name, value in tree.items()
        for option in (value if isinstance(value, dict) else [""])
    }
    assert shown == option_paths(Settings)


def test_sample_explains_every_option() -> None:
    options = [
        line
        for line in SAMPLE.read_text(encoding="utf-8").splitlines()
        if _OPTION.match(line) and "=" in line
    ]
    assert len(options) == len(option_paths(Settings))
    assert [line for line in options if not re.search(r" # \S.{3,}$|:$", line)] == []


def test_sample_shows_every_option_of_a_unix_listener() -> None:
    example = SAMPLE.read_text(encoding="utf-8").split("For example:")[1].split("\n\n")[0]
    tree = tomllib.loads("\n".join(line.removeprefix("#") for line in example.splitlines()))
    (listener,) = tree["grpc"]["unix"]
    assert set(listener) == {each.name for each in dataclasses.fields(UnixListener)}
    assert listener["mode"] == UnixListener("p", "u", "p").mode


def test_sample_shows_every_option_of_a_keystore() -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    example = text[text.index("#   [[keystores]]") :].split("\n\n")[0]
    tree = tomllib.loads("\n".join(line.removeprefix("#") for line in example.splitlines()))
    (keystore,) = tree["keystores"]
    assert set(keystore) == {each.name for each in dataclasses.fields(Keystore)}


_KEYSTORE = "[[keystores]]\ncluster_id = 'a'\ntoken = 'pkcs11:token=a?module-path=/x'\n"


def test_keystores(tmp_path: Path) -> None:
    (one,) = load(written(tmp_path, f"{_KEYSTORE}pin_file = '/p'\ndomains = ['{'0' * 32}']"), {}).keystores
    assert (one.cluster_id, one.pin_file, one.domains) == ("a", Path("/p"), ("0" * 32,))
    (one,) = load(written(tmp_path, _KEYSTORE), {}).keystores
    assert (one.pin_file, one.domains) == (None, ())  # nobody may make one on it


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (_KEYSTORE + _KEYSTORE, "keystores[1].cluster_id"),
        (_KEYSTORE.replace("'a'", "''"), "keystores[0].cluster_id"),
        (_KEYSTORE.replace("'a'", "'a/b'"), "keystores[0].cluster_id"),
        (_KEYSTORE.replace("'a'", f"'{'a' * 37}'"), "keystores[0].cluster_id"),
        (_KEYSTORE + "domains = ['all']", "keystores[0].domains"),
        (_KEYSTORE + "domains = 'all'", "keystores[0].domains"),
        (_KEYSTORE + "softhsm_conf = '/x'", "keystores[0].softhsm_conf"),
        ("[[keystores]]\ncluster_id = 'a'", "keystores[0].token"),
    ],
)
def test_keystores_that_are_none(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: "):
        load(written(tmp_path, text), {})


@pytest.mark.parametrize("name", ["CN:a", "URI:spiffe://a/b", "DNS:*.a", "EMAIL:a@b", "SUBJECT:CN=a,O=b c"])
def test_names_of_gateways(tmp_path: Path, name: str) -> None:
    assert load(written(tmp_path, f"[grpc]\ngateways = ['{name}']"), {}).grpc.gateways == (name,)


@pytest.mark.parametrize("name", ["hsmd-gateway", "", "CN:", "cn:a", "IP:1.2.3.4", "CN:a ", "CN=a", "*"])
def test_names_of_gateways_that_fit_nobody(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^grpc\.gateways: CN:, URI:"):
        load(written(tmp_path, f"[grpc]\ngateways = ['CN:good', '{name}']"), {})


def test_no_file_means_the_defaults() -> None:
    assert load(None, {}) == Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().region = "other"  # type: ignore[misc]  # the assignment is what is tested


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("regio = 'x'", "regio"),
        ("[hsn]", "hsn"),
        ("[grpc]\nprot = 1", "grpc.prot"),
        ("[[grpc.unix]]\npath='a'\nuser_id='b'\nproject_id='c'\ngroup='d'", "grpc.unix[0].group"),
        ("[log]\nlevel = 'INFO'\n[log.more]", "log.more"),
    ],
)
def test_unknown_options_are_refused_with_their_path(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: no such option; known here: "):
        load(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("text", "path", "due"),
    [
        ("region = 1", "region", "str"),
        ("hsm = 'softhsm'", "hsm", "table"),
        ("[grpc]\nport = '7443'", "grpc.port", "int"),
        ("[grpc]\nport = 7443.0", "grpc.port", "int"),
        ("[grpc]\nport = true", "grpc.port", "int"),
        ("[grpc]\ngateways = 'CN:a'", "grpc.gateways", "list"),
        ("[grpc]\ngateways = ['CN:a', 2]", "grpc.gateways[1]", "str"),
        ("[grpc]\nunix = ['a']", "grpc.unix[0]", "table"),
        ("[grpc]\ncertificate = 1", "grpc.certificate", "Path"),
        ("[hsm]\npin_file = 1", "hsm.pin_file", "Path"),
        ("[hsm]\ndeadline_seconds = true", "hsm.deadline_seconds", "float"),
        ("[hsm]\ndeadline_seconds = '10'", "hsm.deadline_seconds", "float"),
        ("[audit]\ndurable = 1", "audit.durable", "bool"),
        ("[audit]\non_failure = 'ignore'", "audit.on_failure", "continue"),
        ("[audit]\ncheckpoint_seconds = 0", "audit.checkpoint_seconds", "0.1 to 3600"),
        ("[audit]\ndurable = 'yes'", "audit.durable", "bool"),
        ("[limits]\ntoken_hours = -1", "limits.token_hours", "number from 0"),
        ("[gateway]\ndeadline_seconds = -0.5", "gateway.deadline_seconds", "number from 0"),
        ("[gateway]\ndeadline_seconds = nan", "gateway.deadline_seconds", "number from 0"),
        ("[gateway]\ndeadline_seconds = -1", "gateway.deadline_seconds", "number from 0"),
    ],
)
def test_wrong_values_are_refused_with_their_path(tmp_path: Path, text: str, path: str, due: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: .*{due}.* is due, not "):
        load(written(tmp_path, text), {})


def test_whole_numbers_do_for_seconds(tmp_path: Path) -> None:
    seconds = load(written(tmp_path, "[hsm]\ndeadline_seconds = 3"), {}).hsm.deadline_seconds
    assert (seconds, type(seconds)) == (3.0, float)


def test_paths_may_be_left_empty_where_they_are_optional(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, "[hsm]\npin_file = ''\nsofthsm_conf = '/etc/softhsm2.conf'"), {})
    assert loaded.hsm.pin_file is None
    assert loaded.hsm.softhsm_conf == Path("/etc/softhsm2.conf")


def test_unix_listeners(tmp_path: Path) -> None:
    text = """
    [[grpc.unix]]
    path = "/run/hsmd/{worker}.sock"
    user_id = "u"
    project_id = "p"
    [[grpc.unix]]
    path = "/run/hsmd/other.sock"
    user_id = "v"
    project_id = "q"
    mode = "0660"
    """
    assert load(written(tmp_path, text), {}).grpc.unix == (
        UnixListener("/run/hsmd/{worker}.sock", "u", "p", "0600"),
        UnixListener("/run/hsmd/other.sock", "v", "q", "0660"),
    )


def test_a_unix_listener_needs_its_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^grpc\.unix\[0\]\.user_id: this option is missing$"):
        load(written(tmp_path, "[[grpc.unix]]\npath = 'a'\nproject_id = 'p'"), {})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HSMD__REGION", "eu-1", "eu-1"),
        ("HSMD__GRPC__PORT", "7000", 7000),
        ("HSMD__GRPC__GATEWAYS", '["CN:a", "CN:b"]', ("CN:a", "CN:b")),
        ("HSMD__HSM__PIN_FILE", "/run/pin", Path("/run/pin")),
        ("HSMD__HSM__TOKEN", "pkcs11:token=a", "pkcs11:token=a"),
        ("HSMD__HSM__DEADLINE_SECONDS", "2", 2.0),
        ("HSMD__AUDIT__DURABLE", "false", False),
    ],
)
def test_environment_wins_over_the_file(tmp_path: Path, name: str, text: str, value: object) -> None:
    path = written(tmp_path, "region = 'file'\n[grpc]\nport = 1\n[audit]\ndurable = true")
    loaded: object = load(path, {name: text})
    for part in name.lower().split("__")[1:]:
        loaded = getattr(loaded, part)
    assert loaded == value


def test_environment_leaves_its_neighbours(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, "[grpc]\nport = 1\nthreads = 2"), {"HSMD__GRPC__PORT": "3"})
    assert (loaded.grpc.port, loaded.grpc.threads) == (3, 2)


def test_other_variables_do_not_matter() -> None:
    assert load(None, {"HSMD_GRPC": "localhost:1", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("HSMD__GRPC__PROT", "1", "grpc.prot: no such option"),
        ("HSMD__NOPE", "1", "nope: no such option"),
        ("HSMD__GRPC__PORT", "many", "grpc.port: int is due"),
        ("HSMD__GRPC__PORT", "-1", "grpc.port: a number from 0 is due"),
        ("HSMD__GRPC", "1", "grpc: a table is due"),
        ("HSMD__REGION__NAME", "x", "region: "),
    ],
)
def test_wrong_variables_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        load(written(tmp_path, "region = 'file'"), {name: text})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read: "):
        load(tmp_path / "nowhere.toml", {})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: "):
        load(tmp_path, {})


def test_a_file_that_fails_to_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^/proc/self/mem: can't be read: "):  # EIO, for root too
        load(Path("/proc/self/mem"), {})


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"region = 'caf\xe9'"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hsmd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"hsmd\.toml: can't be read: "):
        load(path, {})


@pytest.mark.parametrize("text", ["region =", "region = 'a'\nregion = 'b'", "[grpc\nport = 1", "= 1"])
def test_bad_toml_is_named_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"hsmd\.toml: not valid TOML: .*(line|end)"):
        load(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[grpc]\nthreads = 0", "grpc.threads"),
        ("[grpc]\nport = 70000", "grpc.port"),
        ("[grpc]\nport = 0", "grpc.port"),
        ("[gateway]\nport = 65536", "gateway.port"),
        ("[hsm]\ndeadline_seconds = 0", "hsm.deadline_seconds"),
        ("[limits]\nmessage_bytes = 0", "limits.message_bytes"),
        ('region = "a:b"', "region"),
        ('region = ""', "region"),
    ],
)
def test_values_that_can_not_work_are_refused(tmp_path: Path, text: str, path: str) -> None:
    file = tmp_path / "hsmd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}: "):
        load(file, {})


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "metrics.example"])  # noqa: S104 -- refused
def test_metrics_beyond_the_loopback_are_for_certificates_only(tmp_path: Path, address: str) -> None:
    table = f'[metrics]\nenabled = true\naddress = "{address}"\n'
    ours, theirs = 'certificate = "c.pem"\nkey = "c.key"\n', 'client_ca = "ca.pem"\n'
    for given in ("", ours):
        with pytest.raises(ConfigError, match=r"^metrics\.address: beyond the loopback "):
            load(written(tmp_path, table + given), {})
    with pytest.raises(ConfigError, match=r"^metrics\.client_ca: "):
        load(written(tmp_path, table + theirs), {})
    assert load(written(tmp_path, table + ours + theirs), {}).metrics.address == address
    assert load(written(tmp_path, table.replace("true", "false")), {}).metrics.address == address


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_metrics_on_the_loopback_are_for_everybody_there(tmp_path: Path, address: str) -> None:
    table = f'[metrics]\nenabled = true\naddress = "{address}"\n'
    assert load(written(tmp_path, table), {}).metrics.is_local
