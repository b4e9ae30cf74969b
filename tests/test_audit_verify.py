"""The verifier finds what was done to a log, and names the first bad record; a whole log it lets pass."""

import gzip
import itertools
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsmd.audit.chain import Head, digest, linked
from hsmd.audit.checkpoints import CheckpointFile, parse
from hsmd.audit.file import Rotation
from hsmd.audit.verify import Keys, Report, verify
from tests.audits import Notary, lines

MANY = 10_000
_RANDOM = random.Random(6)  # noqa: S311  # no secret


@pytest.fixture
def notary(tmp_path: Path) -> Iterator[Notary]:
    one = Notary(tmp_path)
    yield one
    one.close()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Notary:
    """10,000 records of one process, signed for by ten checkpoints."""
    one = Notary(tmp_path_factory.mktemp("audit"))
    for _ in range(10):
        one.fill("worker-0", MANY // 10, 50)
        one.checkpoint()
    one.close()
    return one


@pytest.fixture
def log(signed: Notary) -> Iterator[Path]:
    """Its file, to be changed; whole again afterwards."""
    path = signed.directory / "worker-0.jsonl"
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def found(report: Report) -> tuple[str, int]:
    """The chain and the number of the one bad record that was named."""
    (fault,) = report.faults
    return fault.chain, fault.seq


def relinked(texts: list[bytes], start: int) -> list[bytes]:
    """What somebody does who has no key: from that place on the lines fit again."""
    made = texts[:start]
    for text in texts[start:]:
        before = digest(made[-1].rstrip(b"\n")) if made else b"0" * 64
        record = json.loads(text)
        del record["seq"], record["prev"]
        body = json.dumps(record, separators=(",", ":")).encode()
        made.append(linked(len(made) + 1, before, body) + b"\n")
    return made


def test_a_whole_log(signed: Notary) -> None:
    report = signed.verify()
    assert report.faults == []
    assert (report.records, report.checkpoints, report.unsigned) == (MANY, 10, {})
    assert report.last is not None
    assert report.last.records == MANY


def test_every_byte_counts(notary: Notary) -> None:
    """Each byte of a small log is changed, of its records and its checkpoints."""
    notary.fill("worker-0", 2)
    notary.checkpoint()
    notary.fill("worker-0", 3)
    notary.write("warden", {"event": "deleteKey"})
    notary.checkpoint()
    notary.close()
    tried = 0
    for path in sorted(notary.directory.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            report = notary.verify()
            named = (path.stem, whole[:place].count(b"\n") + 1)
            if path.suffix == ".chain" and place == len(whole) - 1:  # as a crash leaves it: told, no more
                assert "checkpoints" in report.torn
                assert report.unsigned == {"warden": 1, "worker-0": 3}
                continue
            assert named in [(each.chain, each.seq) for each in report.faults], (place, named, report.faults)
            tried += 1
        path.write_bytes(whole)
    assert tried > 3500
    assert notary.verify().faults == []


@pytest.mark.parametrize("size", [70, 71, 72])
def test_every_byte_of_the_last_signature_counts(notary: Notary, size: int) -> None:
    """No checkpoint stands behind it; base64 of 70 or 71 bytes can be written in several ways."""
    notary.fill("worker-0", 1)
    path = notary.directory / "checkpoints.chain"
    while True:
        path.unlink(missing_ok=True)
        notary.checkpoint()
        (line,) = lines(path)
        if len(parse(line.rstrip(b"\n")).signature) == size:
            break
    keys, line = Keys.of([notary.public]), line.rstrip(b"\n")
    for place in range(line.index(b',"signature":"'), len(line)):
        for other in range(1, 256):
            with suppress(ValueError):
                changed = parse(line[:place] + bytes([line[place] ^ other]) + line[place + 1 :])
                assert keys.wrong(changed), (place, other)


def test_changed_bytes_of_a_long_log(signed: Notary, log: Path) -> None:
    whole = log.read_bytes()
    for place in _RANDOM.sample(range(len(whole)), 100):
        changed = whole[place] ^ (1 << _RANDOM.randrange(8))
        log.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
        assert found(signed.verify()) == ("worker-0", whole[:place].count(b"\n") + 1)


@pytest.mark.parametrize("what", ["removed", "doubled", "swapped"])
def test_moved_records_of_a_long_log(signed: Notary, log: Path, what: str) -> None:
    whole = lines(log)
    for place in [0, 1, MANY - 2, *_RANDOM.sample(range(MANY - 1), 40)]:
        before, one, two, behind = whole[:place], whole[place], whole[place + 1], whole[place + 2 :]
        made = {
            "removed": [*before, two, *behind],
            "doubled": [*before, one, one, two, *behind],
            "swapped": [*before, two, one, *behind],
        }
        log.write_bytes(b"".join(made[what]))
        first = place + 2 if what == "doubled" else place + 1
        assert found(signed.verify()) == ("worker-0", first)


@pytest.mark.parametrize("kept", [0, 1, 5000, MANY - 1])
def test_a_cut_tail(signed: Notary, log: Path, kept: int) -> None:
    log.write_bytes(b"".join(lines(log)[:kept]))
    report = signed.verify()
    assert found(report) == ("worker-0", kept + 1)
    assert "checkpoint 10 counted" in report.faults[0].reason
    log.unlink()
    assert found(signed.verify()) == ("worker-0", 1)


def test_a_cut_within_a_line_is_told_and_hides_nothing(signed: Notary, log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])
    report = signed.verify()
    assert found(report) == ("worker-0", MANY)
    assert report.torn == {"worker-0": len(lines(log)[-1])}
    log.write_bytes(whole + b'{"seq":10001,"pr')  # of a crash: nobody was answered
    report = signed.verify()
    assert report.faults == []
    assert report.torn == {"worker-0": 16}


def test_a_chain_that_was_linked_anew(signed: Notary, log: Path) -> None:
    """Without the audit key lines can be made to fit, but not what was signed."""
    texts = lines(log)
    texts[4321] = texts[4321].replace(b'"OK"', b'"NO"')
    log.write_bytes(b"".join(relinked(texts, 4321)))
    (fault,) = signed.verify().faults
    assert (fault.chain, fault.seq) == ("worker-0", 5000)
    assert "one from 4001 on" in fault.reason
    assert "checkpoint 5" in fault.reason


def test_what_nobody_signed_for_yet_is_counted(notary: Notary) -> None:
    notary.fill("worker-0", 5)
    assert notary.verify().unsigned == {"worker-0": 5}
    notary.checkpoint()
    notary.fill("worker-0", 2)
    notary.fill("appoint", 1)
    report = notary.verify()
    assert report.faults == []
    assert report.unsigned == {"worker-0": 2, "appoint": 1}
    path = notary.directory / "worker-0.jsonl"
    texts = lines(path)
    path.write_bytes(b"".join([*texts[:5], texts[6]]))  # chained they are
    assert found(notary.verify()) == ("worker-0", 6)


# Checkpoints


def test_checkpoints_and_log_cut_alike_are_found_by_one_kept_elsewhere(notary: Notary) -> None:
    chain, path = notary.directory / "checkpoints.chain", notary.directory / "worker-0.jsonl"
    for _ in range(3):
        notary.fill("worker-0", 10)
        notary.checkpoint()
    kept = lines(chain)[-1].rstrip(b"\n")
    assert notary.verify(kept).faults == []
    chain.write_bytes(b"".join(lines(chain)[:2]))
    path.write_bytes(b"".join(lines(path)[:20]))
    assert notary.verify().faults == []  # nothing here tells that there was more
    assert [(each.chain, each.seq) for each in notary.verify(kept).faults] == [
        ("checkpoints", 3),
        ("worker-0", 21),
    ]


def test_a_log_of_another_key(notary: Notary, tmp_path: Path) -> None:
    notary.fill("worker-0", 3)
    notary.checkpoint()
    other = Notary(tmp_path)
    (fault,) = other.verify().faults
    assert (fault.chain, fault.seq) == ("checkpoints", 1)
    assert "another key" in fault.reason
    kept = lines(notary.directory / "checkpoints.chain")[0].rstrip(b"\n")
    notary.key = other.key
    assert "kept elsewhere" in notary.verify(kept).faults[0].reason


def test_both_keys_of_a_log_that_two_have_signed(notary: Notary) -> None:
    notary.fill("worker-0", 3)
    notary.checkpoint()
    first = notary.public
    notary.key = Notary(notary.directory).key
    notary.fill("worker-0", 3)
    notary.checkpoint()
    assert verify(notary.directory, Keys.of([first, notary.public])).faults == []
    assert [each.seq for each in verify(notary.directory, Keys.of([first])).faults] == [2]


@pytest.mark.parametrize("what", ["removed", "swapped", "doubled", "forged", "all", "backwards"])
def test_checkpoints_are_a_chain_themselves(notary: Notary, what: str) -> None:
    for _ in range(4):
        notary.fill("worker-0", 2)
        notary.checkpoint()
    path = notary.directory / "checkpoints.chain"
    one, two, three, four = lines(path)
    forged = two.replace(b'"worker-0":[4', b'"worker-0":[3')
    made = {
        "removed": [one, three, four],
        "swapped": [one, three, two, four],
        "doubled": [one, two, two, three, four],
        "forged": [one, forged],
        "all": [],
        "backwards": [one, two, three, four],
    }
    path.write_bytes(b"".join(made[what]))
    if what == "backwards":  # signed, but no chain gets shorter
        (notary.directory / "worker-0.jsonl").write_bytes(b"")
        file = CheckpointFile(
            notary.directory,
            lambda message: notary.key.sign(message, ec.ECDSA(hashes.SHA256())),
            durable=False,
        )
        file.append({"worker-0": Head(1, "0" * 64)}, notary.der)
        file.close()
    report = notary.verify()
    if what == "all":
        assert report.faults == []
        assert report.unsigned == {"worker-0": 8}  # and nobody signs for anything
        return
    numbers = {"removed": 2, "swapped": 2, "doubled": 3, "forged": 2, "backwards": 5}
    assert ("checkpoints", numbers[what]) in [(each.chain, each.seq) for each in report.faults]


def test_a_token_that_signs_with_another_key(notary: Notary) -> None:
    """No checkpoint is written that nobody could check."""
    notary.fill("worker-0", 1)
    other = ec.generate_private_key(ec.SECP256R1())
    file = CheckpointFile(
        notary.directory, lambda message: other.sign(message, ec.ECDSA(hashes.SHA256())), durable=False
    )
    with pytest.raises(ValueError, match="another key"):
        file.append({"worker-0": Head(1, "0" * 64)}, notary.der)
    file.close()
    assert (notary.directory / "checkpoints.chain").read_bytes() == b""


# Segments


@pytest.fixture
def rotated(tmp_path: Path) -> Iterator[Notary]:
    """A log in several files, records and checkpoints."""
    one = Notary(tmp_path, Rotation(size=3000))
    for _ in range(5):
        one.fill("worker-0", 10)
        one.checkpoint(Rotation(size=500))
    yield one
    one.close()


def test_rotated_and_packed_files_stay_verifiable(rotated: Notary) -> None:
    assert rotated.verify().faults == []
    files = sorted(rotated.directory.glob("*.0*"))
    assert {path.suffix for path in files} == {".jsonl", ".chain"}
    assert len(files) > 8
    for path in files:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        assert rotated.verify().faults == []  # both are there, as when a daemon died between
        path.unlink()
        report = rotated.verify()
        assert report.faults == []
        assert (report.records, report.checkpoints) == (50, 5)


@pytest.mark.parametrize("what", ["gone", "changed", "cut", "swapped", "no gzip"])
def test_what_is_wrong_with_a_packed_file(rotated: Notary, what: str) -> None:
    first, second = sorted(rotated.directory.glob("worker-0.0*"))[:2]
    number = int(second.name.split(".")[1])
    for path in (first, second):
        data = path.read_bytes()
        if path == second and what == "changed":
            data = data.replace(b'"OK"', b'"NO"', 1)
        Path(f"{path}.gz").write_bytes(gzip.compress(data))
        path.unlink()
    packed = Path(f"{second}.gz")
    if what == "gone":
        packed.unlink()
    elif what == "cut":
        packed.write_bytes(packed.read_bytes()[:-20])
    elif what == "no gzip":
        packed.write_bytes(b"no gzip")
    elif what == "swapped":
        other = packed.read_bytes()
        packed.write_bytes(Path(f"{first}.gz").read_bytes())
        Path(f"{first}.gz").write_bytes(other)
    chain, seq = found(rotated.verify())
    assert chain == "worker-0"
    if what == "swapped":
        assert seq == 1
    else:
        assert number <= seq < number + 6


def test_earlier_files_may_be_kept_elsewhere(rotated: Notary) -> None:
    first, *_ = sorted(rotated.directory.glob("worker-0.0*"))
    first.unlink()
    assert found(rotated.verify()) == ("worker-0", 1)
    assert rotated.verify(partial=True).faults != []  # no checkpoint says where that one ended
    texts = [line for path in sorted(rotated.directory.glob("worker-0*")) for line in lines(path)]
    for path in rotated.directory.glob("worker-0*"):
        path.unlink()
    late = [line for line in texts if json.loads(line)["seq"] > 20]
    (rotated.directory / "worker-0.jsonl").write_bytes(b"".join(late))
    report = rotated.verify(partial=True)
    assert report.faults == []
    assert report.records == 30
    (rotated.directory / "worker-0.jsonl").write_bytes(b"".join(late[1:]))
    assert found(rotated.verify(partial=True)) == ("worker-0", 1)


def test_files_of_other_names_are_named(notary: Notary) -> None:
    notary.fill("worker-0", 1)
    notary.checkpoint()
    (notary.directory / "worker-0.jsonl.1").write_bytes(b"")
    (notary.directory / "worker-0.1.jsonl").write_bytes(b"")
    (notary.directory / "README").write_bytes(b"")
    assert notary.verify().strangers == ["worker-0.1.jsonl", "worker-0.jsonl.1"]


def test_what_was_set_aside_is_vouched_for(notary: Notary) -> None:
    old = notary.directory / "worker-0.jsonl"
    old.write_bytes(b'{"event":"createKey"}\n')
    notary.fill("worker-0", 1)
    notary.checkpoint()
    report = notary.verify()
    assert (report.faults, report.strangers) == ([], [])
    assert [each["event"] for each in report.notices] == ["auditFileSetAside"]
    aside = notary.directory / "worker-0.aside-1.jsonl"
    aside.write_bytes(b'{"event":"deleteKey"}\n')
    assert found(notary.verify()) == ("worker-0", 1)
    aside.unlink()
    assert "is gone" in notary.verify().faults[0].reason


# A writer that comes back


def test_records_that_went_while_nobody_wrote_stay_gone(notary: Notary) -> None:
    """The next process sees by the last checkpoint what there was: the gap stays, and is told."""
    notary.fill("worker-0", 10)
    notary.checkpoint()
    notary.close()
    path = notary.directory / "worker-0.jsonl"
    path.write_bytes(b"".join(lines(path)[:6]))
    notary.fill("worker-0", 2)
    texts = [json.loads(line) for line in lines(path)]
    assert [each["seq"] for each in texts] == [*range(1, 7), 11, 12, 13]
    assert texts[6]["event"] == "auditRecordsGone"
    assert texts[6]["detail"] == {"from": 7, "to": 10}
    assert found(notary.verify()) == ("worker-0", 7)


def test_a_torn_line_is_told_by_the_next_process(notary: Notary) -> None:
    notary.fill("worker-0", 3)
    notary.close()
    path = notary.directory / "worker-0.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    notary.fill("worker-0", 1)
    notary.checkpoint()
    report = notary.verify()
    assert report.faults == []
    (notice,) = report.notices
    assert (notice["event"], notice["seq"], notice["process"]) == ("auditLineTorn", 3, "worker-0")


def test_a_million_records_in_less_than_30_seconds(tmp_path: Path) -> None:
    """200,000 of them in a fifth of the time."""
    one = Notary(tmp_path, Rotation(size=16 * 1024 * 1024))
    count = 200_000
    for _, name in itertools.product(range(20), ("worker-0", "worker-1")):
        one.fill(name, count // 40, 500)
        one.checkpoint()
    one.close()
    began = time.process_time()
    report = one.verify()
    assert time.process_time() - began < 6
    assert (report.records, report.faults) == (count, [])
