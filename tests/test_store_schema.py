"""The schema: what the migrations build is what the code uses, made once however many start at once."""

import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, make_url

from hsmd.store import Store, StoreError, upgrade
from hsmd.store.schema import METADATA, REVISION
from tests.stores import behind_its_back, child, is_sqlite, new_url, path_of, seal


def engine_of(url: str) -> Engine:
    return create_engine(url if is_sqlite(url) else make_url(url).set(drivername="postgresql+psycopg"))


def indexes(url: str) -> set[str]:
    """Their definitions, conditions too, which Alembic doesn't compare."""
    if is_sqlite(url):
        rows = behind_its_back(url, "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    else:
        rows = behind_its_back(url, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'")
    return {re.sub(r"\bkeys\.", "", row[0]) for row in rows if "alembic" not in row[0]}


def test_the_migrations_build_what_the_code_uses(store_url: str) -> None:
    engine = engine_of(store_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_the_comparison_would_notice(store_url: str) -> None:
    behind_its_back(store_url, "ALTER TABLE keys DROP COLUMN description")
    engine = engine_of(store_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) != []
    engine.dispose()


def test_the_migrations_build_the_same_indexes(
    request: pytest.FixtureRequest, store_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = "sqlite" if is_sqlite(store_url) else "postgresql"
    with new_url(request, kind, tmp_path_factory.mktemp("other")) as url:
        engine = engine_of(url)
        METADATA.create_all(engine)
        engine.dispose()
        assert indexes(store_url) == indexes(url)
    assert len([each for each in indexes(store_url) if "WHERE" in each]) == 7


def test_the_newest_script_makes_the_schema_of_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", "hsmd.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_an_upgrade_makes_the_store_and_can_be_repeated(empty_url: str) -> None:
    assert upgrade(empty_url) == REVISION
    assert upgrade(empty_url) == REVISION
    with closing(Store(empty_url, seal)) as store:
        store.check()
        kind = "sqlite" if is_sqlite(empty_url) else "postgresql"
        assert store.describe() == f"{kind}, schema {REVISION}"


def test_many_that_upgrade_at_once_make_one_schema(empty_url: str) -> None:
    processes = [child("sys.stdin.readline(); print(upgrade(sys.argv[1]))", empty_url) for _ in range(3)]
    for process in processes:  # all have loaded what they need and wait
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[0] for process in processes] == [f"{REVISION}\n"] * 3
    assert behind_its_back(empty_url, "SELECT version_num FROM alembic_version") == [(REVISION,)]
    with closing(Store(empty_url, seal)) as store:
        store.check()


def test_a_store_that_is_not_made_says_what_to_do(empty_url: str) -> None:
    with closing(Store(empty_url, seal)) as store, pytest.raises(StoreError, match="hsmctl db upgrade"):
        store.check()


@pytest.mark.parametrize(("found", "advice"), [("0000", "hsmctl db upgrade"), ("9999", "a newer hsmd")])
def test_another_schema_says_what_to_do(store_url: str, store: Store, found: str, advice: str) -> None:
    behind_its_back(store_url, "UPDATE alembic_version SET version_num = ?", found)
    with pytest.raises(StoreError, match=advice):
        store.check()


def test_a_newer_schema_is_left_alone(store_url: str) -> None:
    behind_its_back(store_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="a newer hsmd"):
        upgrade(store_url)
    assert behind_its_back(store_url, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_failed_upgrade_leaves_nothing(empty_url: str) -> None:
    if is_sqlite(empty_url):
        path_of(empty_url).touch()
    behind_its_back(empty_url, "CREATE TABLE leases (name TEXT)")  # the last table is in the way
    with pytest.raises(Exception):  # noqa: B017, PT011 # which one is not the point
        upgrade(empty_url)
    behind_its_back(empty_url, "DROP TABLE leases")
    engine = engine_of(empty_url)
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() is None
    engine.dispose()
    assert upgrade(empty_url) == REVISION


def test_only_the_owner_reads_the_files(sqlite_store: Store, sqlite_url: str) -> None:
    with sqlite_store.write() as tx:
        tx.changed("some", "thing")
    files = sorted(path_of(sqlite_url).parent.iterdir())
    assert [path.name for path in files] == ["store.db", "store.db-shm", "store.db-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_commits_are_synchronised(sqlite_store: Store) -> None:
    with sqlite_store.write() as tx:
        settings = {
            name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 5000,
    }


def test_a_copy_without_its_journal_mode_is_noticed_and_mended(sqlite_url: str) -> None:
    with closing(sqlite3.connect(path_of(sqlite_url))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with closing(Store(sqlite_url, seal)) as store:
        with pytest.raises(StoreError, match="hsmctl db upgrade"):
            store.check()
        upgrade(sqlite_url)
        store.check()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError):
        Store(url, seal)
    with pytest.raises(StoreError):
        upgrade(url)


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        upgrade(f"sqlite:///{tmp_path}/absent/store.db")
    (tmp_path / "directory").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        upgrade(f"sqlite:///{tmp_path}/directory")


def test_names_with_odd_characters_work(tmp_path: Path) -> None:
    path = tmp_path / "a b#c&d" / "störe.db"
    path.parent.mkdir()
    upgrade(f"sqlite:///{path}")
    assert path.exists()
    with closing(Store(f"sqlite:///{path}", seal)) as store:
        store.check()
