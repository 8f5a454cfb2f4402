//! Three shards behind a proxy, and a whole database that has all their rows: what tests of statements over several
//! shards stand on.
//!
//! What must stay true: ids up to 99 belong to the first shard, up to 199 to the second, all others to the third.

use crate::{
    client::{Client, query},
    harness::{Proxy, postgres, until},
};

/// Whether the proxy has a role of its own on the servers, which two-phase commit needs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Control {
    Own,
    None,
}

/// What is on the servers and in the configuration.
#[derive(Clone, Copy)]
pub(crate) struct Three<'a> {
    /// Of the databases, and of nothing else in the test program.
    pub(crate) name: &'a str,
    /// Run on every shard and on the whole database.
    pub(crate) ddl: &'a str,
    /// Tables whose key is their column `id`, with their schema.
    pub(crate) tables: &'a [&'a str],
    pub(crate) reference: &'a [&'a str],
    pub(crate) control: Control,
    /// How many of the shards the configuration names: the first ones.
    pub(crate) shards: usize,
    /// Of the group, whose tables these are.
    pub(crate) ranges: &'a str,
    /// Lines of the logical database's section.
    pub(crate) database: &'a str,
    /// Lines of the section `server`.
    pub(crate) server: &'a str,
    /// Lines of the section `pool`.
    pub(crate) pool: &'a str,
}

const RANGES: &str = r#"{ to = 100, shard = "s0" }, { to = 200, shard = "s1" }, { shard = "s2" }"#;

impl<'a> Three<'a> {
    /// One table `t (id bigint primary key, n int)`, four backends a pool.
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            name,
            ddl: "create table t (id bigint primary key, n int)",
            tables: &["public.t"],
            reference: &[],
            control: Control::Own,
            shards: 3,
            ranges: RANGES,
            database: "",
            server: "",
            pool: "size = 4",
        }
    }

    /// Makes the databases and starts a proxy before them; returns when it can write on several shards,
    /// unless it never can.
    pub(crate) fn start(self) -> Stand {
        let server = postgres().port();
        let mut admin = Client::connect(server, &[]);
        let mut made = Vec::new();
        for at in 0..4 {
            let name = format!("{}_{at}", self.name);
            admin.ask(&query(&format!("create database {name}")));
            let mut database = Client::connect_to(server, &name, &[]);
            let answer = database.ask(&query(self.ddl));
            assert!(!answer[0].starts_with('E'), "{answer:?}");
            database.ask(&query("create table ready (id bigint)"));
            made.push(database);
        }
        let whole = made.remove(3);
        let proxy = self.proxy();
        let sharded = proxy.client();
        let stand = Stand {
            name: self.name.to_owned(),
            whole,
            sharded,
            shards: made,
            proxy,
        };
        if self.control == Control::Own {
            stand.ready();
        }
        stand
    }

    /// One more proxy before the same shards.
    pub(crate) fn proxy(self) -> Proxy {
        Proxy::of(self.server, self.pool, &self.databases())
    }

    /// What the configuration says of the database.
    pub(crate) fn databases(self) -> String {
        let quoted = |names: &[&str], end: &str| -> String {
            let names = names.iter().map(|name| format!("\"{name}\"{end}"));
            names.collect::<Vec<_>>().join(", ")
        };
        let shards: String = (0..self.shards)
            .map(|at| {
                format!(
                    "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{}/{}_{at}?sslmode=disable\" }}\n",
                    postgres().port(),
                    self.name
                )
            })
            .collect();
        let control = match self.control {
            Control::Own => "control = { user = \"postgres\" }",
            Control::None => "",
        };
        format!(
            "[databases.postgres]\n{control}\n{}\n{shards}[databases.postgres.groups.g]\nmethod = \"range\"\n\
             key_type = \"bigint\"\n\
             ranges = [{}]\n\
             tables = {{ \"public.ready\" = \"id\", {} }}\n[databases.postgres.tables]\nreference = [{}]\n",
            self.database,
            self.ranges,
            quoted(self.tables, " = \"id\""),
            quoted(self.reference, "")
        )
    }
}

/// What [`Three::start`] made.
pub(crate) struct Stand {
    /// What its databases' names begin with.
    pub(crate) name: String,
    /// PostgreSQL itself, with all rows.
    pub(crate) whole: Client,
    /// Through the proxy.
    pub(crate) sharded: Client,
    /// Each shard, past the proxy.
    pub(crate) shards: Vec<Client>,
    pub(crate) proxy: Proxy,
}

impl Stand {
    fn ready(&self) {
        let mut client = self.proxy.client();
        until("two-phase commit is ready", || {
            client.ask(&query("insert into ready values (1), (101)"))[0].starts_with('C')
        });
    }

    /// Both answer this alike, message by message, but for RowDescription, which tells tables by their numbers.
    pub(crate) fn alike(&mut self, bytes: &[u8], readies: usize) -> Vec<String> {
        self.whole.send(bytes);
        self.sharded.send(bytes);
        let plain = |mut lines: Vec<String>| {
            lines.retain(|line| !line.starts_with('T'));
            lines
        };
        let (expected, found) = (
            plain(self.whole.answers(readies)),
            plain(self.sharded.answers(readies)),
        );
        assert_eq!(
            found,
            expected,
            "PostgreSQL's is on the right, to {}",
            String::from_utf8_lossy(bytes).escape_debug()
        );
        found
    }

    /// Each of these texts is a Query that both answer alike.
    pub(crate) fn all_alike(&mut self, texts: &[&str]) {
        for text in texts {
            self.alike(&query(text), 1);
        }
    }

    /// The proxy's answer to a Query.
    pub(crate) fn ask(&mut self, sql: &str) -> Vec<String> {
        self.sharded.ask(&query(sql))
    }

    /// A Query is refused or fails with this in its error.
    pub(crate) fn fails(&mut self, sql: &str, with: &str) {
        let found = self.ask(sql);
        let told = |line: &String| line.starts_with("E ") && line.contains(with);
        assert!(found.iter().any(told), "{sql}: {found:?}");
    }

    /// What each shard says, asked past the proxy.
    pub(crate) fn seen(&mut self, sql: &str) -> Vec<String> {
        let shards = self.shards.iter_mut();
        shards.map(|shard| shard.value(sql)).collect()
    }

    /// Waits until nothing is prepared, and nobody is in a transaction.
    pub(crate) fn at_rest(&mut self) {
        let name = &self.name;
        let open = format!(
            "select (select count(*) from pg_prepared_xacts where database like '{name}%') + \
             (select count(*) from pg_stat_activity where datname like '{name}%' and xact_start is not null \
              and pid <> pg_backend_pid())"
        );
        let shard = &mut self.shards[0];
        until("every transaction has ended", || shard.value(&open) == "0");
    }
}
