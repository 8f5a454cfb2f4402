//! How the demo is spread over one more server while clients use it: a load, and the commands to type.
//!
//! What must stay true: what is printed works as it stands, in this order (`tests/demo.rs` types it).

use super::{DemoError, program, quoted, write};
use crate::sandbox::{Cluster, shop};
use std::path::{Path, PathBuf};

/// A customer is read, ordered for and changed: on one shard, in one transaction.
const ORDERS: &str = "\
\\set customer random(1, 1000)
\\set number random(100, 1000000000)
SELECT c.name, count(o.id) FROM customers c LEFT JOIN orders o ON o.customer_id = c.id WHERE c.id = :customer GROUP BY c.name;
BEGIN;
INSERT INTO orders VALUES (:customer, :number, '2026-03-01 12:00:00+00', 9.99) ON CONFLICT DO NOTHING;
UPDATE customers SET email = 'c' || :number || '@example.com' WHERE id = :customer;
COMMIT;
";
/// All shards are asked.
const TOTALS: &str = "SELECT status, count(*), sum(total) FROM orders GROUP BY status;\n";

/// The demo, and the server that its customers are to be spread over as well.
pub(super) struct Growing<'a> {
    pub(super) serving: usize,
    pub(super) port: u16,
    pub(super) root: &'a Path,
    pub(super) configuration: &'a Path,
    pub(super) spare: &'a Cluster,
}

impl Growing<'_> {
    /// Writes what `pgbench` runs.
    pub(super) fn write_load(&self) -> Result<(), DemoError> {
        for (path, text) in self.scripts() {
            write(&path, text)?;
        }
        Ok(())
    }

    fn scripts(&self) -> [(PathBuf, &'static str); 2] {
        let path = |name: &str| self.root.join(name);
        [(path("orders.sql"), ORDERS), (path("totals.sql"), TOTALS)]
    }

    /// What to type.
    pub(super) fn invitation(&self) -> String {
        let (user, password, database) = (shop::USER, shop::PASSWORD, shop::DATABASE);
        let (serving, port) = (self.serving, self.port);
        let shards: Vec<String> = (0..=serving).map(|at| format!("s{at}")).collect();
        let word = |path: &Path| quoted(&path.display().to_string());
        let [orders, totals] = self.scripts().map(|(path, _)| word(&path));
        let pgbench = self.spare.program("pgbench");
        format!(
            "
From {serving} shards to {more} while clients read and write. s{serving} is there, and empty:
    {server}

  In another terminal, a load; it tells what fails, and runs until Ctrl-C or ten minutes are over:
    {pgbench} -n -c 4 -T 600 -P 5 -f {orders}@9 -f {totals}@1 'postgres://{user}:{password}@127.0.0.1:{port}/{database}'

  What would move; then copy, catch up and compare, while the former owners serve. All servers, the load and the proxy share
  this machine: the cutover gets more time than it would need on servers of their own:
    {reshard} plan {config} --group customers --to {to}
    {reshard} start {config} --group customers --to {to} --set drain_ms=1000 --set hold_ms=5000 --set lock_ms=500 --watch

  What the change of owners needs, and the change; then back, and there again:
    {reshard} cutover {config} --dry-run
    {reshard} cutover {config}
    {reshard} rollback {config}
    {reshard} cutover {config}

  Who owns what by now; then the former owners' rows go, and there is no way back:
    psql 'postgres://ops:ops@127.0.0.1:{port}/shardway' -c 'SHOW MAP'
    {reshard} finish {config} --watch
",
            more = serving + 1,
            server = format_args!(
                "postgres://{user}:{password}@127.0.0.1:{}/{database}",
                self.spare.port()
            ),
            pgbench = pgbench.map_or_else(|| "pgbench".to_owned(), |path| word(&path)),
            reshard = format_args!("{} reshard", quoted(&program())),
            config = format_args!("--config {}", word(self.configuration)),
            to = shards.join(","),
        )
    }
}
