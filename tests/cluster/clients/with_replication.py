"""Follows one shard with psycopg2's replication cursor and prints what was inserted there."""

import os
import sys

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

database, shard, key = sys.argv[1:4]
slot = f"cursor_{key}"

plain = psycopg2.connect(dbname=database)
plain.autocommit = True
connection = psycopg2.connect(
    dbname=database,
    options=f"-c shardway.shard={shard}",
    connection_factory=LogicalReplicationConnection,
)
cursor = connection.cursor()
cursor.create_replication_slot(slot, output_plugin="test_decoding")
with plain.cursor() as writer:
    writer.execute(
        "INSERT INTO customers VALUES (%s, 'cursor', 'cursor', NULL)", (int(key),)
    )
cursor.start_replication(slot_name=slot, decode=True, status_interval=1)


def consume(message):
    """Confirms each message; ends with the one that is ours."""
    message.cursor.send_feedback(flush_lsn=message.data_start, reply=True)
    if f"INSERT: id[bigint]:{key} " in message.payload:
        print(message.payload)
        raise StopIteration


try:
    cursor.consume_stream(consume)
except StopIteration:
    pass
# The stream ends with its connection, and its slot with another.
connection.close()
again = psycopg2.connect(
    dbname=database,
    options=f"-c shardway.shard={shard}",
    connection_factory=LogicalReplicationConnection,
)
dropping = again.cursor()
while True:
    try:
        dropping.drop_replication_slot(slot)
        break
    except psycopg2.errors.ObjectInUse:
        # The server has not noticed yet that the stream is over.
        continue
print("dropped", os.environ["PGUSER"])
