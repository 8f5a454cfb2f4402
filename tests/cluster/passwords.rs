//! Who enters, and how it is proved: each method towards clients and towards servers, with the right password, a wrong
//! one and none, and names that do not exist.

use crate::harness::{Proxy, Recipe, block_on, environment, fill, open_session, shop};
use shardway::sandbox::{Auth, Sandbox, shop as names};
use tokio_postgres::{Config, error::SqlState};

/// Connects and asks something, as applications do.
fn enter(config: &Config) -> Result<String, tokio_postgres::Error> {
    block_on(async {
        let client = open_session(config).await?;
        let sql = "SELECT name FROM customers WHERE id = $1";
        Ok(client.query_one(sql, &[&5_i64]).await?.get(0))
    })
}

#[track_caller]
fn assert_refused(config: &Config, code: &SqlState, word: &str) {
    let error = enter(config).unwrap_err();
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!((said.severity(), said.code()), ("FATAL", code), "{said:?}");
    assert!(said.message().contains(word), "{said:?}");
}

#[test]
fn each_method_lets_the_right_password_in_and_no_other() {
    let mut sections = String::new();
    for method in ["trust", "password", "md5", "scram"] {
        sections += &format!(
            "[users.by_{method}]\nauth = \"{method}\"\npassword = \"right {method}\"\ndatabases = [\"shop\"]\n\
             backend_user = \"{}\"\nbackend_password = \"{}\"\n",
            names::USER,
            names::PASSWORD
        );
    }
    let proxy = shop().serve(&Recipe::with(&sections));
    for method in ["trust", "password", "md5", "scram"] {
        let user = format!("by_{method}");
        let mut config = proxy.target().config();
        config.user(&user).password(format!("right {method}"));
        assert_eq!(enter(&config).unwrap(), "Fatima Perez", "{method}");
        config.password("wrong");
        if method == "trust" {
            enter(&config).unwrap();
            continue;
        }
        assert_refused(
            &config,
            &SqlState::INVALID_PASSWORD,
            &format!("password authentication failed for user \"{user}\""),
        );
        config.password("");
        assert_refused(&config, &SqlState::INVALID_PASSWORD, "password");
    }
}

#[test]
fn an_unknown_user_learns_no_more_than_one_with_a_wrong_password() {
    for target in shop().both() {
        let mut config = target.config();
        config.user("nobody at all").password("x");
        assert_refused(
            &config,
            &SqlState::INVALID_PASSWORD,
            "password authentication failed for user \"nobody at all\"",
        );
    }
}

#[test]
fn an_unknown_database_and_one_that_is_not_the_users_are_refused() {
    for target in shop().both() {
        let mut config = target.config();
        config.dbname("no such database");
        assert_refused(&config, &SqlState::INVALID_CATALOG_NAME, "no such database");
    }
    let proxy = shop().serve(&Recipe::with(
        "[users.visitor]\npassword = \"x\"\ndatabases = [\"other\"]\n\
         [databases.other]\nshards.s0 = { primary = \"postgres://127.0.0.1:1/other\" }",
    ));
    let mut config = proxy.target().config();
    config.user("visitor").password("x");
    let error = enter(&config).unwrap_err();
    assert_eq!(
        error.code(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        "{error:?}"
    );
}

/// A shard that asks for its passwords in one way.
fn check_server(auth: Auth) {
    let sandbox = Sandbox::builder(environment()).auth(auth).start().unwrap();
    fill(sandbox.clusters());
    let serve = |password: &str| {
        let text = Recipe::default().write(sandbox.clusters()).replace(
            &format!(
                "[users.{}]\npassword = \"{}\"",
                names::USER,
                names::PASSWORD
            ),
            &format!(
                "[users.{}]\npassword = \"{}\"\nbackend_password = \"{password}\"",
                names::USER,
                names::PASSWORD
            ),
        );
        assert!(text.contains("backend_password"), "{text}");
        Proxy::start(sandbox.root(), &text)
    };
    let proxy = serve(names::PASSWORD);
    let answer = enter(&proxy.target().config());
    assert_eq!(answer.unwrap(), "Fatima Perez", "{auth:?}");
    let proxy = serve("wrong");
    let end = enter(&proxy.target().config());
    if auth == Auth::Trust {
        end.unwrap();
        return;
    }
    // Not the client's fault: it hears that the shard cannot be used, and from which.
    let error = end.unwrap_err();
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(said.code(), &SqlState::CONNECTION_FAILURE, "{said:?}");
    assert!(said.detail().unwrap().contains("\"s0\""), "{said:?}");
}

#[test]
fn a_server_that_trusts_is_entered() {
    check_server(Auth::Trust);
}

#[test]
fn a_server_that_asks_for_a_plain_password_is_entered() {
    check_server(Auth::Password);
}

#[test]
fn a_server_that_asks_for_md5_is_entered() {
    check_server(Auth::Md5);
}

#[test]
fn a_server_that_asks_for_scram_is_entered() {
    check_server(Auth::Scram);
}
