from datetime import UTC, datetime, timedelta

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.database.ids import EPOCH_MS, age_of, created_at, shard_of


@given(age=st.integers(0, 2**40 - 1), shard=st.integers(0, 8191), sequence=st.integers(0, 1023))
def test_an_id_contains_its_time_and_its_shard(age, shard, sequence):
    identifier = age << 23 | shard << 10 | sequence

    assert 0 <= identifier < 2**63
    assert shard_of(identifier) == shard
    assert age_of(identifier) == age


def test_the_database_makes_unique_ids_with_the_current_time(database_of):
    with psycopg.connect(database_of("post").database_url.get_secret_value()) as connection:
        rows = connection.execute("SELECT next_id(4711) FROM generate_series(1, 1000)").fetchall()
    ids = [row[0] for row in rows]

    assert len(set(ids)) == 1000
    assert {shard_of(identifier) for identifier in ids} == {4711}
    assert abs(created_at(ids[0]) - datetime.now(UTC)) < timedelta(seconds=30)


def test_the_epoch_is_the_start_of_2026():
    assert created_at(0) == datetime(2026, 1, 1, tzinfo=UTC)
    assert datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000 == EPOCH_MS
