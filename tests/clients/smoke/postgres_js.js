// postgres.js as an application uses it: each check stands alone. It pipelines and prepares by itself.
const postgres = require('postgres');
const { assert, fails, run } = require('./checks.js');

async function connected(act, options = {}) {
  const sql = postgres({ max: 3, ssl: false, onnotice: () => {}, ...options });
  try {
    return await act(sql);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

run({
  'values of many types there and back': () => connected(async (sql) => {
    const [row] = await sql`SELECT ${1}::int AS a, ${'ü漢🎉'}::text AS b, ${true}::bool AS c, ${sql.json({ k: [1] })} AS d, ${[1, 2]}::int[] AS e`;
    assert.deepEqual({ ...row }, { a: 1, b: 'ü漢🎉', c: true, d: { k: [1] }, e: [1, 2] });
  }),
  'the same statement on every connection': () => connected(async (sql) => {
    const rows = await Promise.all(Array.from({ length: 200 }, (_, at) => sql`SELECT ${at}::int + 1 AS n`));
    assert.deepEqual(rows.map(([row]) => row.n), Array.from({ length: 200 }, (_, at) => at + 1));
  }),
  'without prepared statements': () => connected(async (sql) => {
    const rows = await Promise.all(Array.from({ length: 50 }, (_, at) => sql`SELECT ${at}::int + 1 AS n`));
    assert.deepEqual(rows.map(([row]) => row.n), Array.from({ length: 50 }, (_, at) => at + 1));
  }, { prepare: false }),
  'a transaction, its savepoint and its rollback': () => connected(async (sql) => {
    await sql`CREATE TABLE js_saved (n int PRIMARY KEY)`;
    await sql.begin(async (tx) => {
      await tx`INSERT INTO js_saved VALUES (1)`;
      await fails(tx.savepoint((inner) => inner`INSERT INTO js_saved VALUES (1)`), '23505');
      await tx`INSERT INTO js_saved VALUES (2)`;
    });
    await fails(sql.begin(async (tx) => { await tx`INSERT INTO js_saved VALUES (3)`; await tx`SELECT 1 / 0`; }), '22012');
    assert.equal((await sql`SELECT sum(n)::int AS n FROM js_saved`)[0].n, 3);
  }),
  'pipelined statements in a transaction': () => connected(async (sql) => {
    const answers = await sql.begin((tx) => Array.from({ length: 30 }, (_, at) => tx`SELECT ${at}::int AS n`));
    assert.deepEqual(answers.map(([row]) => row.n), Array.from({ length: 30 }, (_, at) => at));
  }),
  'a cursor in portions': () => connected(async (sql) => {
    let seen = 0;
    await sql`SELECT generate_series(1, 1000) AS n`.cursor(64, (rows) => { seen += rows.length; });
    assert.equal(seen, 1000);
  }),
  'a cursor that is left': () => connected(async (sql) => {
    for await (const [row] of sql`SELECT generate_series(1, 1000) AS n`.cursor()) if (row.n === 3) break;
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1);
  }, { max: 1 }),
  'rows one by one': () => connected(async (sql) => {
    let sum = 0;
    await sql`SELECT generate_series(1, 100) AS n`.forEach((row) => { sum += row.n; });
    assert.equal(sum, 5050);
  }),
  'a description without a run': () => connected(async (sql) => {
    const described = await sql`SELECT ${1}::int AS a, 'x'::text AS b`.describe();
    assert.deepEqual([described.types, described.columns.map((column) => column.type)], [[23], [23, 25]]);
  }),
  'copy in and out': () => connected(async (sql) => {
    await sql`CREATE TABLE js_copied (n int, t text)`;
    const lines = Array.from({ length: 5000 }, (_, at) => `${at}\tline ${at}\n`);
    await sql.begin(async (tx) => {
      const into = await tx`COPY js_copied FROM STDIN`.writable();
      await new Promise((resolve, reject) => {
        into.on('error', reject).on('finish', resolve);
        for (const line of lines) into.write(line);
        into.end();
      });
    });
    assert.equal((await sql`SELECT count(*)::int AS n FROM js_copied`)[0].n, 5000);
    const out = await sql`COPY js_copied TO STDOUT`.readable();
    let text = '';
    for await (const chunk of out) text += chunk;
    assert.equal(text, lines.join(''));
  }),
  'a query is cancelled': () => connected(async (sql) => {
    const query = sql`SELECT pg_sleep(10)`;
    const ended = fails(query, '57014');
    setTimeout(() => query.cancel(), 300);
    await ended;
    assert.equal((await sql`SELECT 1 AS n`)[0].n, 1);
  }),
  'notifications arrive': () => connected(async (sql) => {
    const heard = new Promise((resolve) => { sql.listen('js_channel', resolve, () => sql.notify('js_channel', 'told')); });
    assert.equal(await heard, 'told');
  }),
  'a reserved connection keeps its settings': () => connected(async (sql) => {
    const own = await sql.reserve();
    await own`SET work_mem = '7MB'`;
    for (let round = 0; round < 20; round += 1) assert.equal((await own`SHOW work_mem`)[0].work_mem, '7MB');
    await own.release();
  }),
  'several statements in one simple query': () => connected(async (sql) => {
    const answers = await sql`SELECT 1 AS a; SELECT 2 AS b`.simple();
    assert.deepEqual([answers[0][0].a, answers[1][0].b], [1, 2]);
  }),
  'an error among pipelined statements': () => connected(async (sql) => {
    const ends = await Promise.allSettled(Array.from({ length: 20 }, (_, at) => sql`SELECT 10 / (${at}::int - 7) AS n`));
    assert.deepEqual(ends.flatMap((end, at) => (end.status === 'rejected' ? [at] : [])), [7]);
  }, { max: 1 }),
  'a long value': () => connected(async (sql) => {
    assert.equal((await sql`SELECT ${'x'.repeat(5000000)}::text AS t`)[0].t.length, 5000000);
  }),
});
