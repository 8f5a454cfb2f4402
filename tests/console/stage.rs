//! One server with two databases as shards, and a proxy in this process with a console and HTTP.

use shardway::{
    config::{load, settings::Listen},
    sandbox::{Sandbox, SandboxEnv},
    server,
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, mpsc},
    thread,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::{Handle, Runtime},
};
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// A proxy of its own; the server is shared.
pub(crate) struct Stage {
    runtime: Runtime,
    port: u16,
    http: SocketAddr,
}

impl Stage {
    pub(crate) fn open() -> Self {
        Self::with_pool("")
    }

    /// With these lines in its section `pool`.
    pub(crate) fn with_pool(pool: &str) -> Self {
        let server = server_port();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n\
             [pool]\n{pool}\n[databases.app]\ncatalog = \"s0\"\n\
             shards.s0 = {{ primary = \"postgres://127.0.0.1:{server}/s0?sslmode=disable\" }}\n\
             shards.s1 = {{ primary = \"postgres://127.0.0.1:{server}/s1?sslmode=disable\" }}\n\
             [databases.app.groups.customers]\nmethod = \"hash\"\nkey_type = \"bigint\"\nbuckets = 16\n\
             tables = {{ \"public.orders\" = \"customer\" }}\n\
             [users.alice]\nauth = \"trust\"\nbackend_user = \"postgres\"\n\
             [users.ops]\nauth = \"trust\"\nconsole = \"admin\"\n\
             [users.watch]\nauth = \"trust\"\nconsole = \"stats\"\n"
        );
        let read = move || load::load_str("test.toml", &text, Path::new("."));
        let settings = read().unwrap_or_else(|errors| panic!("{}", errors.render()));
        let (told, ready) = mpsc::channel();
        thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            let reload: server::Reload =
                Arc::new(move || read().map_err(|errors| errors.to_string()));
            runtime.block_on(server::run(
                settings,
                reload,
                server::sessions,
                move |bound| told.send(bound).unwrap(),
            ))
        });
        let bound = ready.recv().unwrap();
        let Listen::Tcp(address) = bound.listen[0] else {
            panic!("a TCP listener")
        };
        Self {
            runtime: Runtime::new().unwrap(),
            port: address.port(),
            http: bound.http.unwrap(),
        }
    }

    pub(crate) fn block_on<T>(&self, run: impl Future<Output = T>) -> T {
        self.runtime.block_on(run)
    }

    pub(crate) async fn client(&self, user: &str, database: &str) -> Client {
        self.try_client(user, database).await.unwrap()
    }

    pub(crate) async fn try_client(&self, user: &str, database: &str) -> Result<Client, Error> {
        connect(self.port, user, database).await
    }

    /// What HTTP answers.
    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

async fn connect(port: u16, user: &str, database: &str) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    // It ends when the client is dropped.
    drop(Handle::current().spawn(connection));
    Ok(client)
}

/// The rows of a SHOW, by column.
pub(crate) async fn rows(client: &Client, show: &str) -> Vec<HashMap<String, String>> {
    let messages = client.simple_query(show).await.unwrap();
    let of_row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(
            row.columns()
                .iter()
                .enumerate()
                .map(|(at, column)| {
                    (
                        column.name().to_owned(),
                        row.get(at).unwrap_or_default().to_owned(),
                    )
                })
                .collect(),
        ),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) => None,
        other => panic!("{other:?}"),
    };
    messages.into_iter().filter_map(of_row).collect()
}

/// The row with that value.
pub(crate) fn row<'a>(
    rows: &'a [HashMap<String, String>],
    column: &str,
    value: &str,
) -> &'a HashMap<String, String> {
    let found = rows.iter().find(|row| row[column] == value);
    found.unwrap_or_else(|| panic!("{column} = {value} in {rows:#?}"))
}

/// A column that is a number.
pub(crate) fn number(row: &HashMap<String, String>, column: &str) -> u64 {
    row[column].parse().unwrap()
}

/// The SQLSTATE of an error.
pub(crate) fn code(error: &Error) -> String {
    error
        .code()
        .map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// The server that all tests share, with both shards' tables.
fn server_port() -> u16 {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(start).cluster(0).port()
}

fn start() -> Sandbox {
    let env = SandboxEnv::of(std::env::var_os, std::env::temp_dir());
    let sandbox = Sandbox::builder(env).start().unwrap();
    let port = sandbox.cluster(0).port();
    let make = async {
        let server = connect(port, "postgres", "postgres").await.unwrap();
        for shard in ["s0", "s1"] {
            server
                .batch_execute(&format!("CREATE DATABASE {shard}"))
                .await
                .unwrap();
            let inside = connect(port, "postgres", shard).await.unwrap();
            inside
                .batch_execute("CREATE TABLE orders (customer bigint NOT NULL, note text)")
                .await
                .unwrap();
        }
    };
    thread::scope(|scope| {
        scope
            .spawn(|| Runtime::new().unwrap().block_on(make))
            .join()
            .unwrap();
    });
    sandbox
}
