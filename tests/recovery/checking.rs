//! What `shardway check --connect` finds missing, and that the SQL which it prints is all that is needed.

use crate::harness::{DECIDER, OTHER, PATIENCE, Stage, block_on};
use shardway::registry::{NotReady, SchemaFault};
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

/// What the command prints.
fn check(stage: &Stage, more: &[&str]) -> String {
    let directory = tempdir(&stage.name);
    let file = directory.join("shardway.toml");
    let text = stage.configuration([("s0", 0), ("s1", 1)], "");
    std::fs::write(&file, text).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_shardway"))
        .args(["check", "--connect", "--config"])
        .arg(&file)
        .args(more)
        .output()
        .unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).unwrap()
}

fn tempdir(name: &str) -> PathBuf {
    let directory = format!("shardway-recovery-{}-{name}", std::process::id());
    let directory = std::env::temp_dir().join(directory);
    std::fs::create_dir(&directory).unwrap();
    directory
}

/// Runs a script as an administrator of both servers.
fn psql(stage: &Stage, script: &str) {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let installed = versions.map(|version| version.unwrap().path().join("bin/psql"));
    let given = std::env::var_os("SHARDWAY_PG_BIN").map(|bin| PathBuf::from(bin).join("psql"));
    let mut found = given.into_iter().chain(installed);
    let program = found
        .find(|path| path.exists())
        .unwrap_or_else(|| "psql".into());
    let mut child = Command::new(program)
        .args([
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--username=postgres",
        ])
        .arg(format!("--port={}", stage.servers[0].port()))
        .arg(format!(
            "--host={}",
            stage.servers[0].socket_dir().display()
        ))
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{errors}\n{script}");
}

#[test]
fn the_printed_sql_makes_a_role_without_rights_the_control_role() {
    block_on(async {
        let stage = Stage::bare().await;
        // Of its own, so that no other test's grants help.
        let control = format!("{}_control", stage.name);
        let app = format!("{}_app", stage.name);
        for shard in [DECIDER, OTHER] {
            let roles = format!(
                "CREATE ROLE {control} LOGIN; CREATE ROLE {app} LOGIN; GRANT ALL ON t TO {app}"
            );
            stage.execute(shard, &roles).await;
        }
        let stage = Stage {
            control,
            app,
            ..stage
        };
        let proxy = stage.proxy();
        proxy.round().await;
        let refused = proxy.coordinator.begin(DECIDER, &[OTHER], &stage.app);
        let Err(NotReady::NoSchema { fault, .. }) = refused else {
            panic!("{refused:?}");
        };
        let role = stage.control.clone();
        assert_eq!(fault, SchemaFault::NotAllowed { role });

        let text = check(&stage, &[]);
        for expected in ["schema \"shardway\" cannot be used", "may not act as role"] {
            assert_eq!(text.matches(expected).count(), 2, "{expected}: {text}");
        }
        psql(&stage, &check(&stage, &["--print-sql"]));
        assert_eq!(
            check(&stage, &["--print-sql"]),
            "",
            "nothing is missing any more"
        );

        proxy.round().await;
        let transaction = proxy.coordinator.begin(DECIDER, &[OTHER], &stage.app);
        let transaction = transaction.unwrap();
        stage
            .prepare_as(&stage.app, &transaction.gid(OTHER), 1)
            .await;
        assert_eq!(proxy.settle(&transaction, PATIENCE).await, "aborted");
        drop(transaction);
        proxy.round().await;
        assert_eq!(proxy.recovered(), (0, 1));
        let superusers = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'";
        assert_eq!(stage.ask(DECIDER, superusers).await, ["0"]);
    });
}

#[test]
fn check_names_servers_that_prepare_nothing() {
    block_on(async {
        let stage = Stage::new().await;
        let sandbox = Stage::unprepared().await;
        let text = check(&sandbox, &[]);
        assert!(text.contains("max_prepared_transactions is 0"), "{text}");
        let sql = check(&sandbox, &["--print-sql"]);
        assert!(
            sql.contains("ALTER SYSTEM SET max_prepared_transactions = "),
            "{sql}"
        );
        let proxy = sandbox.ready().await;
        let refused = proxy.coordinator.begin(DECIDER, &[OTHER], "app");
        assert!(
            matches!(refused, Err(NotReady::NoPrepared { .. })),
            "{refused:?}"
        );
        assert!(!check(&stage, &[]).contains("max_prepared_transactions"));
    });
}
