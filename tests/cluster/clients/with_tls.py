"""Enters over TLS as libpq does it, bound to the channel; says how, and cancels a statement over TLS too.

The server is in PG* variables.
"""

import threading

import psycopg


def cancel_until(done, connection):
    # A request that comes before the statement does nothing.
    while not done.wait(0.1):
        connection.cancel_safe()


for negotiation in ("postgres", "direct"):
    for version in ("3.0", "latest"):
        with psycopg.connect(
            sslnegotiation=negotiation,
            channel_binding="require",
            max_protocol_version=version,
            autocommit=True,
        ) as connection:
            name = connection.execute("SELECT name FROM customers WHERE id = 5").fetchone()[0]
            how = "encrypted" if connection.pgconn.ssl_in_use else "in the clear"
            print(negotiation, version, how, name)
            done = threading.Event()
            other = threading.Thread(target=cancel_until, args=(done, connection))
            other.start()
            try:
                connection.execute("SELECT pg_sleep(60), name FROM customers WHERE id = 5")
                print("it slept through")
            except psycopg.errors.QueryCanceled as error:
                print("cancelled", error.sqlstate)
            done.set()
            other.join()
