// node-postgres as an application uses it: each check stands alone. The server is in PG* variables.
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');
const { assert, fails, run } = require('./checks.js');

async function client(act) {
  const opened = new Client();
  await opened.connect();
  try {
    return await act(opened);
  } finally {
    await opened.end();
  }
}

const value = async (on, text, values) => Object.values((await on.query(text, values)).rows[0])[0];

run({
  'simple queries and several in one': () => client(async (on) => {
    assert.equal(await value(on, 'SELECT 1'), 1);
    const results = await on.query('SELECT 1 AS a; SELECT 2 AS b; SET work_mem = 1024');
    assert.deepEqual(results.map((result) => result.command), ['SELECT', 'SELECT', 'SET']);
  }),
  'values of many types there and back': () => client(async (on) => {
    const { rows } = await on.query(
      'SELECT $1::int a, $2::text b, $3::bool c, $4::jsonb d, $5::timestamptz e, $6::int[] f, $7::bytea g, $8::numeric h',
      [1, 'ü漢🎉', true, { k: [1, null] }, new Date(86400000), [1, 2], Buffer.from([0, 255]), '1.50'],
    );
    assert.deepEqual(rows[0], {
      a: 1, b: 'ü漢🎉', c: true, d: { k: [1, null] }, e: new Date(86400000), f: [1, 2], g: Buffer.from([0, 255]), h: '1.50',
    });
  }),
  'a named statement again and again': () => client(async (on) => {
    for (let round = 0; round < 50; round += 1) {
      const { rows } = await on.query({ name: 'again', text: 'SELECT $1::int + 1 AS n', values: [round] });
      assert.equal(rows[0].n, round + 1);
    }
  }),
  'one name for two texts is refused': () => client(async (on) => {
    await on.query({ name: 'same', text: 'SELECT 1' });
    await assert.rejects(on.query({ name: 'same', text: 'SELECT 2' }), /must be unique/);
  }),
  'a transaction with savepoints': () => client(async (on) => {
    await on.query('BEGIN');
    await on.query('CREATE TABLE node_saved (n int PRIMARY KEY)');
    await on.query('INSERT INTO node_saved VALUES (1)');
    await on.query('SAVEPOINT a');
    await fails(on.query('INSERT INTO node_saved VALUES (1)'), '23505');
    await fails(on.query('SELECT 1'), '25P02');
    await on.query('ROLLBACK TO SAVEPOINT a');
    await on.query('INSERT INTO node_saved VALUES (2)');
    await on.query('COMMIT');
    assert.equal(await value(on, 'SELECT sum(n)::int FROM node_saved'), 3);
  }),
  'settings stay with their client': () => client((first) => client(async (second) => {
    await first.query("SET application_name = 'one'; SET timezone = 'Asia/Tokyo'");
    await second.query("SET application_name = 'two'");
    for (let round = 0; round < 20; round += 1) {
      assert.equal(await value(first, 'SHOW application_name'), 'one');
      assert.equal(await value(second, 'SHOW application_name'), 'two');
      assert.equal(await value(first, 'SHOW timezone'), 'Asia/Tokyo');
    }
  })),
  'a cursor in portions': () => client(async (on) => {
    const cursor = on.query(new Cursor('SELECT generate_series(1, 1000) AS n'));
    let seen = 0;
    for (let rows = await cursor.read(64); rows.length > 0; rows = await cursor.read(64)) seen += rows.length;
    assert.equal(seen, 1000);
    const left = on.query(new Cursor('SELECT generate_series(1, 1000) AS n'));
    await left.read(10);
    await left.close();
    assert.equal(await value(on, 'SELECT 1'), 1);
  }),
  'queued queries and an error among them': () => client(async (on) => {
    const ends = await Promise.allSettled(Array.from({ length: 30 }, (_, at) => on.query('SELECT 10 / ($1::int - 7) AS n', [at])));
    assert.deepEqual(ends.map((end) => end.status).filter((status) => status === 'rejected').length, 1);
    assert.equal(ends[7].reason.code, '22012');
    assert.equal(ends[8].value.rows[0].n, 10);
  }),
  'errors have their fields': () => client(async (on) => {
    const error = await on.query('SELECT nothing').catch((found) => found);
    assert.deepEqual([error.code, error.severity, error.position], ['42703', 'ERROR', '8']);
  }),
  'notices arrive': () => client(async (on) => {
    const heard = [];
    on.on('notice', (notice) => heard.push(notice.message));
    await on.query("DO $$ BEGIN RAISE NOTICE 'heard'; END $$");
    assert.deepEqual(heard, ['heard']);
  }),
  'notifications arrive': () => client((listener) => client(async (sender) => {
    const heard = new Promise((resolve) => { listener.on('notification', (told) => resolve([told.channel, told.payload])); });
    await listener.query('LISTEN node_channel');
    await sender.query("NOTIFY node_channel, 'told'");
    assert.deepEqual(await heard, ['node_channel', 'told']);
  })),
  'a long value': () => client(async (on) => {
    const long = 'x'.repeat(5000000);
    assert.equal((await value(on, 'SELECT $1::text', [long])).length, long.length);
  }),
  'rows as arrays and binary rows': () => client(async (on) => {
    const { rows } = await on.query({ text: 'SELECT 1, NULL', rowMode: 'array' });
    assert.deepEqual(rows, [[1, null]]);
    const binary = await on.query({ text: 'SELECT $1::int8 AS n', values: ['42'], binary: true });
    assert.equal(binary.rows[0].n, '42');
  }),
  'more clients than backends': async () => {
    const pool = new Pool({ max: 40 });
    const sums = await Promise.all(Array.from({ length: 200 }, (_, at) => value(pool, 'SELECT $1::int + 1', [at])));
    assert.deepEqual(sums, Array.from({ length: 200 }, (_, at) => at + 1));
    await pool.end();
  },
  'statement_timeout from the startup packet': async () => {
    const hurried = new Client({ statement_timeout: 100 });
    await hurried.connect();
    await fails(hurried.query('SELECT pg_sleep(5)'), '57014');
    await hurried.end();
  },
});
