//! Users that only the servers know: looked up there, let in by what they show, and themselves on every shard, because
//! what they have shown opens their backends. Nobody else gets in, and nobody gets at theirs.

use crate::harness::{Proxy, block_on, environment, open_session, printed, until};
use crate::tls::certificates;
use shardway::sandbox::{Auth, Cluster, Sandbox};
use std::{fs, process::Command};
use tokio_postgres::{Config, SimpleQueryMessage, error::SqlState};

/// Servers on which roles are made alike, and a table with a row of each shard.
struct Servers {
    sandbox: Sandbox,
}

impl Servers {
    fn start(auth: Auth) -> Self {
        let sandbox = Sandbox::builder(environment()).clusters(2).auth(auth);
        let servers = Self {
            sandbox: sandbox.start().unwrap(),
        };
        servers.everywhere(
            "CREATE ROLE control LOGIN PASSWORD 'control';
             GRANT SELECT ON pg_catalog.pg_authid TO control;
             CREATE TABLE t (id bigint PRIMARY KEY, place text); GRANT ALL ON t TO PUBLIC",
        );
        for (at, server) in servers.sandbox.clusters().iter().enumerate() {
            let sql = format!("INSERT INTO t SELECT id, 's{at}' FROM generate_series(1, 50) id");
            block_on(server.execute("postgres", &sql)).unwrap();
        }
        servers
    }

    fn everywhere(&self, sql: &str) {
        for server in self.sandbox.clusters() {
            block_on(server.execute("postgres", sql)).unwrap();
        }
    }

    /// A role with the same stored password on every server.
    fn role(&self, name: &str, password: &str) {
        let home = self.sandbox.cluster(0);
        block_on(home.execute(
            "postgres",
            &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"),
        ))
        .unwrap();
        let stored = stored(home, name);
        let sql = format!("CREATE ROLE {name} LOGIN PASSWORD '{stored}'");
        block_on(self.sandbox.cluster(1).execute("postgres", &sql)).unwrap();
    }

    fn proxy(&self, database: &str, sections: &str) -> Proxy {
        self.serve("", database, sections)
    }

    fn serve(&self, server: &str, database: &str, sections: &str) -> Proxy {
        let control = "control = { user = \"control\", password = \"control\" }";
        Proxy::start(
            self.sandbox.root(),
            &self.text(server, &format!("{control}\n{database}"), sections),
        )
    }

    fn text(&self, server: &str, database: &str, sections: &str) -> String {
        let [s0, s1] = [0, 1].map(|at| self.sandbox.cluster(at).port());
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nlog = {{ level = \"debug\" }}\n{server}\n\
             [databases.postgres]\n{database}\n\
             shards.s0 = {{ primary = \"postgres://127.0.0.1:{s0}/postgres\" }}\n\
             shards.s1 = {{ primary = \"postgres://127.0.0.1:{s1}/postgres\" }}\n\
             groups.g = {{ method = \"range\", key_type = \"bigint\", tables = {{ \"public.t\" = \"id\" }}, \
             ranges = [{{ to = 10, shard = \"s0\" }}, {{ shard = \"s1\" }}] }}\n{sections}"
        )
    }
}

/// What a server stores of a role's password.
fn stored(server: &Cluster, role: &str) -> String {
    let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
    let rows = block_on(server.query("postgres", &sql)).unwrap();
    rows[0][0].clone().unwrap()
}

fn config(proxy: &Proxy, user: &str, password: &str) -> Config {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(proxy.port)
        .dbname("postgres")
        .user(user)
        .password(password);
    config
}

/// Who one is, and where: on the shard of this key.
fn asks(config: &Config, key: i64) -> Result<String, tokio_postgres::Error> {
    let sql = format!(
        "SELECT place || ' ' || current_user || ' ' || session_user FROM t WHERE id = {key}"
    );
    block_on(async {
        let client = open_session(config).await?;
        let rows = client.simple_query(&sql).await?;
        let row = rows.iter().find_map(|message| {
            let SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            row.get(0)
        });
        Ok(row.unwrap().to_owned())
    })
}

const ON_S0: i64 = 3;
const ON_S1: i64 = 30;

#[track_caller]
fn assert_enters(config: &Config, name: &str) {
    assert_eq!(asks(config, ON_S0).unwrap(), format!("s0 {name} {name}"));
    assert_eq!(asks(config, ON_S1).unwrap(), format!("s1 {name} {name}"));
}

#[track_caller]
fn assert_refused(config: &Config, user: &str) {
    let error = asks(config, ON_S0).unwrap_err();
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(said.code(), &SqlState::INVALID_PASSWORD, "{said:?}");
    let words = format!("password authentication failed for user \"{user}\"");
    assert_eq!(said.message(), words);
}

#[test]
fn who_only_the_servers_know_enters_and_is_itself_on_every_shard() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret of ann");
    let proxy = servers.proxy("auth_query = true", "");
    for _ in 0..2 {
        assert_enters(&config(&proxy, "ann", "secret of ann"), "ann");
    }
    assert_refused(&config(&proxy, "ann", "secret"), "ann");
    // What opens backends is nowhere to be read.
    let log = proxy.log();
    let [salt_and_keys] = [stored(servers.sandbox.cluster(0), "ann")];
    let parts = salt_and_keys.split(['$', ':']).skip(2);
    for secret in parts.chain(["secret of ann"]) {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn who_may_not_log_in_on_the_server_does_not_enter_and_learns_nothing() {
    let servers = Servers::start(Auth::Scram);
    servers.everywhere(
        "CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01';
         CREATE ROLE a_group NOLOGIN PASSWORD 'x'; CREATE ROLE no_password LOGIN",
    );
    servers.role("valid", "x");
    servers.everywhere("ALTER ROLE valid VALID UNTIL 'infinity'");
    let proxy = servers.proxy("auth_query = true", "");
    assert_enters(&config(&proxy, "valid", "x"), "valid");
    for user in [
        "expired",
        "a_group",
        "no_password",
        "nobody",
        "valid' OR true --",
    ] {
        assert_refused(&config(&proxy, user, "x"), user);
    }
    assert_refused(&config(&proxy, "valid", "y"), "valid");
    // The name that PostgreSQL would cut to that of a role is nobody's.
    let long = "r".repeat(63);
    servers.role(&long, "x");
    let longer = format!("{long}r");
    assert_refused(&config(&proxy, &longer, "x"), &longer);
    assert_enters(&config(&proxy, &long, "x"), &long);
}

#[test]
fn nothing_of_a_client_or_of_a_search_path_reaches_the_lookup() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    // Whoever could choose the operators would be found under every name.
    servers.everywhere(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE FUNCTION evil.yes(name, name) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.yes);
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT '2000-01-01'::timestamptz$$;
         CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01';
         ALTER ROLE control SET search_path = evil, pg_catalog;
         ALTER DATABASE postgres SET search_path = evil, pg_catalog",
    );
    let proxy = servers.proxy("auth_query = true", "");
    for user in ["nobody", "expired"] {
        let mut chosen = config(&proxy, user, "x");
        chosen.options("-c search_path=evil,pg_catalog");
        assert_refused(&chosen, user);
    }
    let mut ann = config(&proxy, "ann", "secret");
    ann.options("-c search_path=public");
    assert_enters(&ann, "ann");
}

#[test]
fn a_function_of_its_owner_looks_up_where_the_control_role_may_not() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    servers.everywhere("REVOKE SELECT ON pg_catalog.pg_authid FROM control");
    let proxy = servers.proxy("auth_query = true", "");
    let error = asks(&config(&proxy, "ann", "secret"), ON_S0).unwrap_err();
    assert_eq!(
        error.code(),
        Some(&SqlState::CONNECTION_FAILURE),
        "{error:?}"
    );
    until("the reason is logged", || {
        proxy
            .log()
            .contains("permission denied for table pg_authid")
    });
    // As docs/operations.md has it.
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
    let page = page.unwrap();
    let (_, rest) = page.split_once("```sql\n-- auth_query").unwrap();
    let (sql, _) = rest.split_once("```").unwrap();
    servers.everywhere(&format!("-- auth_query{sql}"));
    let query = "auth_query = \"SELECT name, password FROM auth_lookup.lookup($1)\"";
    let proxy = servers.proxy(query, "");
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
    assert_refused(&config(&proxy, "nobody", "secret"), "nobody");
}

#[test]
fn where_a_shard_keeps_another_verifier_the_client_hears_which_and_what_to_do() {
    let servers = Servers::start(Auth::Scram);
    // The same password, another salt.
    servers.everywhere("CREATE ROLE ann LOGIN PASSWORD 'secret'");
    let proxy = servers.proxy("auth_query = true", "");
    let ann = config(&proxy, "ann", "secret");
    // The session begins on whichever shard takes it; statements of s0 work.
    let outcome = (0..4).find_map(|_| asks(&ann, ON_S1).err()).unwrap();
    let said = outcome
        .as_db_error()
        .unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!(said.code(), &SqlState::CONNECTION_FAILURE, "{said:?}");
    assert!(said.detail().unwrap().contains("\"s1\""), "{said:?}");
    assert!(said.detail().unwrap().contains("(SW212)"), "{said:?}");
    assert!(said.hint().unwrap().contains("ALTER ROLE"), "{said:?}");
    // What the hint says helps.
    let copied = stored(servers.sandbox.cluster(0), "ann");
    let sql = format!("ALTER ROLE ann PASSWORD '{copied}'");
    block_on(servers.sandbox.cluster(1).execute("postgres", &sql)).unwrap();
    until("s1 is tried again", || asks(&ann, ON_S1).is_ok());
    assert_enters(&ann, "ann");
}

#[test]
fn a_password_shown_over_tls_opens_servers_whatever_they_keep() {
    let servers = Servers::start(Auth::Scram);
    servers.everywhere("CREATE ROLE ann LOGIN PASSWORD 'secret'");
    let made = certificates(&["127.0.0.1"]);
    let [cert, key] = ["own.crt", "own.key"].map(|name| servers.sandbox.root().join(name));
    fs::write(&cert, made.cert).unwrap();
    fs::write(&key, made.key).unwrap();
    let tls = format!(
        "tls = {{ mode = \"prefer\", cert = \"{}\", key = \"{}\" }}",
        cert.display(),
        key.display()
    );
    let found = "[users.\"*\"]\nauth = \"passthrough-password\"";
    let proxy = servers.serve(&tls, "auth_query = true", found);
    for (key, shard) in [(ON_S0, "s0"), (ON_S1, "s1")] {
        let mut psql = Command::new("psql");
        psql.env("PGPASSWORD", "secret").args(["-X", "-At", "-c"]);
        psql.arg(format!(
            "SELECT place, current_user FROM t WHERE id = {key}"
        ));
        psql.arg(format!(
            "host=127.0.0.1 port={} user=ann dbname=postgres sslmode=require",
            proxy.port
        ));
        assert_eq!(printed(&mut psql), format!("{shard}|ann\n"));
    }
    let clear = asks(&config(&proxy, "ann", "secret"), ON_S0).unwrap_err();
    let code = clear.code();
    assert_eq!(
        code,
        Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        "{clear:?}"
    );
}

#[test]
fn a_changed_password_counts_at_the_second_try_at_the_latest() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "old");
    let proxy = servers.proxy("auth_query = true\nauth_query_cache = \"1h\"", "");
    assert_enters(&config(&proxy, "ann", "old"), "ann");
    servers.everywhere("ALTER ROLE ann PASSWORD 'new'");
    let copied = stored(servers.sandbox.cluster(0), "ann");
    servers.everywhere(&format!("ALTER ROLE ann PASSWORD '{copied}'"));
    // Backends of before are gone, so that new ones must be opened.
    servers.everywhere(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'ann'",
    );
    assert_refused(&config(&proxy, "ann", "new"), "ann");
    assert_enters(&config(&proxy, "ann", "new"), "ann");
    assert_refused(&config(&proxy, "ann", "old"), "ann");
}

#[test]
fn a_verifier_in_the_file_lets_in_and_opens_without_any_lookup() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    let verifier = stored(servers.sandbox.cluster(0), "ann");
    let listed = format!("[users.ann]\nauth = \"passthrough\"\nverifier = \"{verifier}\"");
    let proxy = servers.proxy("", &listed);
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
    assert_refused(&config(&proxy, "ann", "wrong"), "ann");
    assert_refused(&config(&proxy, "bob", "secret"), "bob");
}

#[test]
fn backends_that_a_client_has_opened_are_used_by_nobody_else() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    let other = "[users.other]\nauth = \"trust\"\nbackend_user = \"ann\"\n\
                 [users.ann]\nauth = \"passthrough\"\npool = { size = 1 }\n\
                 [users.third]\nauth = \"trust\"\nbackend_user = \"ann\"\npool = { size = 1 }";
    let proxy = servers.proxy("auth_query = true", other);
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
    for user in ["other", "third"] {
        let error = asks(&config(&proxy, user, ""), ON_S0).unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::CONNECTION_FAILURE),
            "{error:?}"
        );
    }
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
}

#[test]
fn found_users_can_share_the_backends_of_one_role() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    servers.role("shared", "of backends");
    let found = "[users.\"*\"]\nauth = \"passthrough\"\n\
                 backend_user = \"shared\"\nbackend_password = \"of backends\"";
    let proxy = servers.proxy("auth_query = true", found);
    assert_enters(&config(&proxy, "ann", "secret"), "shared");
    assert_refused(&config(&proxy, "ann", "of backends"), "ann");
}

#[test]
fn what_is_stored_as_md5_is_passed_through_too() {
    let servers = Servers::start(Auth::Md5);
    servers.role("ann", "secret");
    assert!(stored(servers.sandbox.cluster(0), "ann").starts_with("md5"));
    let proxy = servers.proxy("auth_query = true", "");
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
    assert_refused(&config(&proxy, "ann", "wrong"), "ann");
}

#[test]
fn nobody_enters_while_the_server_that_knows_them_is_away() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    let proxy = servers.proxy("auth_query = true\nauth_query_cache = \"1ms\"", "");
    assert_enters(&config(&proxy, "ann", "secret"), "ann");
    servers.sandbox.cluster(0).stop();
    for user in ["ann", "nobody"] {
        let error = asks(&config(&proxy, user, "secret"), ON_S1).unwrap_err();
        let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        assert_eq!(said.code(), &SqlState::CONNECTION_FAILURE, "{said:?}");
        assert_eq!(said.message(), "cannot look up users now");
    }
    servers.sandbox.cluster(0).start().unwrap();
    let ann = config(&proxy, "ann", "secret");
    until("ann is found again", || asks(&ann, ON_S0).is_ok());
    assert_enters(&ann, "ann");
}

#[test]
fn who_has_to_wait_makes_no_server_look_anybody_up() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    let proxy = servers.serve(
        "failed_logins = 1\nfailed_login_delay = \"1h\"",
        "auth_query = true",
        "",
    );
    assert_refused(&config(&proxy, "ann", "wrong"), "ann");
    servers.sandbox.cluster(0).stop();
    let error = asks(&config(&proxy, "ann", "secret"), ON_S1).unwrap_err();
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(said.code().code(), "28000", "{said:?}");
    assert!(said.hint().unwrap_or_default().starts_with("Try again in"));
}

/// Whether a user can listen.
fn listens(config: &Config) -> Result<(), tokio_postgres::Error> {
    block_on(async { open_session(config).await?.batch_execute("LISTEN c").await })
}

#[test]
fn where_there_is_no_control_role_each_user_listens_as_itself() {
    let servers = Servers::start(Auth::Scram);
    servers.role("ann", "secret");
    servers.role("bob", "old");
    let verifier = stored(servers.sandbox.cluster(0), "ann");
    let users = |password: &str| {
        servers.text(
            "",
            "",
            &format!(
                "[users.ann]\nauth = \"passthrough\"\nverifier = \"{verifier}\"\n\
                 [users.bob]\npassword = \"x\"\nbackend_password = \"{password}\"\n\
                 [users.wrong]\npassword = \"x\"\nbackend_user = \"bob\"\n\
                 backend_password = \"wrong\"\n"
            ),
        )
    };
    let proxy = Proxy::start(servers.sandbox.root(), &users("old"));
    // Whoever comes first does not decide for the others.
    listens(&config(&proxy, "ann", "secret")).unwrap();
    listens(&config(&proxy, "wrong", "x")).unwrap_err();
    listens(&config(&proxy, "bob", "x")).unwrap();
    // Nor for itself, once it has another password.
    servers.everywhere(
        "ALTER ROLE bob PASSWORD 'new'; SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'bob'",
    );
    let text = fs::read_to_string(&proxy.config).unwrap();
    fs::write(&proxy.config, text.replace("\"old\"", "\"new\"")).unwrap();
    proxy.signal("HUP");
    until("the reload is told", || {
        proxy.log().contains("configuration reloaded")
    });
    listens(&config(&proxy, "bob", "x")).unwrap();
}
