//! Where a name of a database may lead, and where not.

use super::*;

/// How a login of `ops` to the console's name ends, where the wildcard takes every name.
async fn outcome(databases: &[&str], pairs: &[(&[u8], &[u8])]) -> String {
    let mut context = context(TlsMode::Disable, &testing::certificates());
    context.others = Others::Wildcard;
    let mut ops = (*context.users["ops"]).clone();
    ops.databases = databases.iter().map(|name| (*name).to_owned()).collect();
    context.users.insert("ops".into(), Arc::new(ops));
    let (address, mut logins) = tcp(context);
    let named: [(&[u8], &[u8]); 2] = [(b"user", b"ops"), (b"database", CONSOLE.as_bytes())];
    let mut stream = TcpStream::connect(address).await.unwrap();
    let packet = startup_packet(&[&named[..], pairs].concat());
    stream.write_all(&packet).await.unwrap();
    logins.recv().await.unwrap()
}

#[tokio::test]
async fn the_right_to_the_console_opens_no_replication_of_other_databases() {
    assert_eq!(outcome(&["app"], &[]).await, "ops in shardway");
    for kind in ["true", "database"] {
        let replicates: [(&[u8], &[u8]); 1] = [(b"replication", kind.as_bytes())];
        assert_eq!(
            outcome(&["app"], &replicates).await,
            "the user may not use the database"
        );
        assert_eq!(outcome(&[], &replicates).await, "ops in shardway");
    }
}
