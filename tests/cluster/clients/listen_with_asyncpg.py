"""Listens with asyncpg's own listeners; prints what arrives, by whom it is said to be."""

import asyncio
import sys

import asyncpg

channel = sys.argv[1]


async def main():
    listener, other = await asyncpg.connect(), await asyncpg.connect()
    arrived = asyncio.Queue()

    def heard(connection, pid, channel, payload):
        who = "own" if pid == connection.get_server_pid() else "other"
        arrived.put_nowait(f"{channel} {payload!r} {who}")

    async def wait(count):
        async with asyncio.timeout(20):
            print(sorted([await arrived.get() for _ in range(count)]))

    await listener.add_listener(channel, heard)
    await other.execute(f"NOTIFY {channel}, 'from another session'")
    await wait(1)
    await listener.execute("SELECT pg_notify($1, $2)", channel, "from myself")
    await wait(1)
    async with other.transaction():
        await other.execute("SELECT pg_notify($1, $2)", channel, "in a transaction")
    await wait(1)
    await listener.remove_listener(channel, heard)
    await other.execute(f"NOTIFY {channel}, 'unheard'")
    await listener.add_listener("second", heard)
    await other.execute("NOTIFY second, 'heard'")
    await wait(1)
    print(await listener.fetchval("SELECT count(*) FROM pg_listening_channels()"))
    await listener.reset()
    print(await listener.fetchval("SELECT count(*) FROM pg_listening_channels()"))
    await other.close()
    await listener.close()


asyncio.run(main())
