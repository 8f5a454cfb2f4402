// Runs named checks one after the other and prints "ok NAME" or "not ok NAME" for each.
const assert = require('node:assert/strict');

async function run(checks) {
  for (const [name, check] of Object.entries(checks)) {
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('took too long')), 20000); });
    try {
      await Promise.race([check(), late]);
      console.log(`ok ${name}`);
    } catch (error) {
      console.error(name, error);
      console.log(`not ok ${name}`);
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(0);
}

async function fails(promise, code) {
  await assert.rejects(promise, (error) => error.code === code);
}

module.exports = { assert, fails, run };
