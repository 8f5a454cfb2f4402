// node-postgres as an application uses it. Prints what it sees.
// The server is in PG* variables; the argument is the first customer id that this run may write.
const { Client, Pool } = require('pg');

const base = Number(process.argv[2]);
const show = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);

async function attempt(what, act) {
  try {
    const result = await act();
    show(what, { command: result.command, rows: result.rows });
  } catch (error) {
    show(what, { code: error.code, severity: error.severity, message: error.message });
  }
}

async function reads(client) {
  const byId = (id) => client.query({ name: 'customer', text: 'SELECT id, name, country FROM customers WHERE id = $1', values: [id] });
  for (let round = 0; round < 2; round += 1) {
    for (let id = 1; id <= 40; id += 1) show('prepared', (await byId(id)).rows);
  }
  // Sent without waiting: the driver queues them, and each has its own answer.
  const queued = await Promise.all([11, 12, 13, 14].map((id) => client.query('SELECT id, name FROM customers WHERE id = $1', [id])));
  show('queued', queued.map((result) => result.rows));
  const simple = await client.query('SELECT id, total FROM orders WHERE customer_id = 7 ORDER BY id');
  show('simple', { rows: simple.rows, fields: simple.fields.map((field) => [field.name, field.dataTypeID]) });
}

async function writes(client) {
  await client.query('BEGIN');
  await client.query('INSERT INTO customers VALUES ($1, $2, $3, $4)', [base, "Ünïcødé 漢字 🎉 'q' \\", 'e', null]);
  await client.query('SAVEPOINT a');
  await attempt('duplicate', () => client.query('INSERT INTO customers VALUES ($1, $2, $3, $4)', [base, 'x', 'e', null]));
  await attempt('in failed', () => client.query('SELECT 1'));
  await client.query('ROLLBACK TO SAVEPOINT a');
  await attempt('order', () => client.query("INSERT INTO orders VALUES ($1, 1, '2026-05-01', 10.50) RETURNING total, status", [base]));
  await client.query('COMMIT');
  await attempt('customer', () => client.query('SELECT * FROM customers WHERE id = $1', [base]));
  await attempt('deleted', () => client.query('DELETE FROM orders WHERE customer_id = $1', [base]));
  await attempt('deleted', () => client.query('DELETE FROM customers WHERE id = $1', [base]));
}

async function errors(client) {
  await attempt('syntax', () => client.query('SELEC 1'));
  await attempt('unknown column', () => client.query('SELECT nothing FROM customers WHERE id = $1', [1]));
  const mixed = await Promise.allSettled([
    client.query('SELECT id FROM customers WHERE id = $1', [1]),
    client.query('SELECT 1 / (id - 2) FROM customers WHERE id = $1', [2]),
    client.query('SELECT id FROM customers WHERE id = $1', [3]),
  ]);
  show('one bad among three', mixed.map((end) => (end.status === 'fulfilled' ? end.value.rows : end.reason.code)));
  await client.query('BEGIN');
  await attempt('syntax in a transaction', () => client.query('SELECT FROM WHERE'));
  await attempt('then', () => client.query('SELECT id FROM customers WHERE id = 1'));
  await attempt('rollback', () => client.query('ROLLBACK'));
  await attempt('after rollback', () => client.query('SELECT id FROM customers WHERE id = 1'));
}

async function main() {
  const wrong = new Client({ password: 'not it' });
  try {
    await wrong.connect();
    show('wrong password', 'entered');
  } catch (error) {
    show('wrong password', error.code);
  }
  const client = new Client();
  await client.connect();
  await reads(client);
  await writes(client);
  await errors(client);
  await client.end();

  const pool = new Pool({ max: 8 });
  const many = Array.from({ length: 200 }, (_, at) => at + 1);
  const names = await Promise.all(many.map(async (id) => (await pool.query('SELECT name FROM customers WHERE id = $1', [id])).rows[0].name));
  show('through a pool', names);
  await pool.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
