//! All wording of errors to clients, and the table of their codes.
//!
//! Every code stands in [`CODES`], from which `docs/errors.md` is made; DETAIL ends in the code.

pub mod console;
mod refusal;
pub mod session;

use crate::{
    plan::unroutable::Unroutable,
    wire::notice::{Notice, Words},
};
use refusal::{hint, message};

/// A stable code of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub code: &'static str,
    pub sqlstate: &'static str,
    pub title: &'static str,
    pub meaning: &'static str,
    pub what_to_do: &'static str,
}

/// The error for a statement that is not routed.
#[must_use]
pub fn unroutable(why: &Unroutable) -> Notice {
    let code = why.code();
    let (message, detail) = message(why);
    let hint = hint(why).or_else(|| code_named(code).map(|code| code.what_to_do.to_owned()));
    Notice {
        severity: "ERROR",
        sqlstate: why.sqlstate(),
        message,
        detail: Some(format!("{detail} ({code})")),
        hint,
    }
}

/// What is written in the table of codes.
#[must_use]
pub fn code_named(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}

/// The code that an error of ours ends its DETAIL with; none for PostgreSQL's own errors and for those that PostgreSQL
/// has words for.
#[must_use]
pub fn code_of(words: &Words) -> Option<&'static str> {
    let Words::Ours(notice) = words else {
        return None;
    };
    let (_, code) = notice.detail.as_deref()?.rsplit_once('(')?;
    code_named(code.strip_suffix(')')?).map(|code| code.code)
}

/// `docs/errors.md`.
#[must_use]
pub fn errors_markdown() -> String {
    let mut page = String::from(
        "# Errors\n\n<!-- Made from the table in src/proxy/reply.rs; do not edit. -->\n\n\
         Errors of PostgreSQL pass to the client unchanged. Shardway's own have a code at the end of DETAIL.\n",
    );
    for code in CODES {
        page.push_str(&format!(
            "\n## {} {}\n\nSQLSTATE `{}`. {}\n\n{}\n",
            code.code, code.title, code.sqlstate, code.meaning, code.what_to_do
        ));
    }
    page
}

/// Every code of routing.
pub const CODES: &[Code] = &[
    Code {
        code: "SW101",
        sqlstate: "0A000",
        title: "Not supported over several shards",
        meaning: "The feature is not computed for a database of several shards.",
        what_to_do: "Run it on one shard: SET shardway.shard = '<shard>', or a comment /* shardway: shard=<shard> */ at its start.",
    },
    Code {
        code: "SW102",
        sqlstate: "0A000",
        title: "Shard key not restricted",
        meaning: "A sharded table stands in a query block whose predicates do not pin its shard key to one value, and the statement is none that is computed over the rows of all shards.",
        what_to_do: "Add an equality with the shard key to that query block; docs/routing.md tells what is computed over several shards.",
    },
    Code {
        code: "SW103",
        sqlstate: "0A000",
        title: "Several shards needed",
        meaning: "The keys or tables of one statement, or of one transaction, live on several shards.",
        what_to_do: "Split it into one statement for each key.",
    },
    Code {
        code: "SW104",
        sqlstate: "42P01",
        title: "Table in no group",
        meaning: "The configuration does not say where the table lives, so that it is never created or read by accident.",
        what_to_do: "Add the table to a group, or to the reference or single tables, in the configuration.",
    },
    Code {
        code: "SW105",
        sqlstate: "23502",
        title: "Shard key missing",
        meaning: "An INSERT gives no value for the shard key; defaults of the key are not computed by the proxy.",
        what_to_do: "Give a value for the shard key in the INSERT.",
    },
    Code {
        code: "SW106",
        sqlstate: "23502",
        title: "Shard key is NULL",
        meaning: "A row whose shard key is NULL belongs to no shard.",
        what_to_do: "Give a value for the shard key in the INSERT.",
    },
    Code {
        code: "SW107",
        sqlstate: "0A000",
        title: "Shard key is an expression",
        meaning: "An INSERT computes the shard key, so that the shard is not known before it runs.",
        what_to_do: "Compute the value in the application and pass it as a constant or a parameter.",
    },
    Code {
        code: "SW108",
        sqlstate: "0A000",
        title: "Shard key changed",
        meaning: "A statement may change a row's shard key in a way in which rows cannot be moved: ON CONFLICT, MERGE, DEFAULT, RETURNING of what an INSERT cannot return, or a row that FROM sends to several shards (docs/routing.md).",
        what_to_do: "Update the key in an UPDATE of its own, or delete the row and insert it with the new key.",
    },
    Code {
        code: "SW109",
        sqlstate: "22P02 or 0A000",
        title: "Value is no shard key",
        meaning: "A value that is compared with or stored in the shard key cannot be read as PostgreSQL would read it.",
        what_to_do: "Pass the value in the key's own type: digits for integers, ISO 8601 dates, offsets with timestamps.",
    },
    Code {
        code: "SW110",
        sqlstate: "23514",
        title: "No shard for this key",
        meaning: "The map of a list or range group has no place for the value.",
        what_to_do: "Add the value to the group's lists, or \"*\" for all others.",
    },
    Code {
        code: "SW111",
        sqlstate: "0A000",
        title: "Write to a reference table",
        meaning: "Every shard holds a copy of the table. Writes change all copies alike (docs/routing.md); this one could not be repeated alike on each, or it locks rows, which excludes nobody who uses another copy.",
        what_to_do: "Write it on each shard: SET shardway.shard = '<shard>' for every shard.",
    },
    Code {
        code: "SW112",
        sqlstate: "0A000",
        title: "Function with unknown effects",
        meaning: "The function may read or change anything, and nothing else in the statement names a shard.",
        what_to_do: "Pin the statement: by a predicate on a shard key, or by SET shardway.shard or shardway.key.",
    },
    Code {
        code: "SW113",
        sqlstate: "0A000",
        title: "To be run on each shard",
        meaning: "The schema change or maintenance command is none of those that run over several shards, or the session is in session mode or keeps a backend.",
        what_to_do: "Run it on each shard: SET shardway.shard = '<shard>' for every shard.",
    },
    Code {
        code: "SW114",
        sqlstate: "0A000",
        title: "Not understood",
        meaning: "PostgreSQL accepts the statement but Shardway cannot analyze it.",
        what_to_do: "Run it on one shard: SET shardway.shard = '<shard>'.",
    },
    Code {
        code: "SW115",
        sqlstate: "0A000",
        title: "Not UTF-8",
        meaning: "Statements that are not UTF-8 are not analyzed.",
        what_to_do: "SET client_encoding = 'UTF8', or pass such values as parameters.",
    },
    Code {
        code: "SW116",
        sqlstate: "54001",
        title: "Nested too deeply",
        meaning: "The statement nests deeper than is analyzed.",
        what_to_do: "Write it with less nesting.",
    },
    Code {
        code: "SW117",
        sqlstate: "0A000",
        title: "Column list needed",
        meaning: "An INSERT without a column list into a table whose columns are not known.",
        what_to_do: "Write the column list.",
    },
    Code {
        code: "SW118",
        sqlstate: "0A000",
        title: "COPY of a sharded table",
        meaning: "This COPY is not split or gathered over shards: its column list lacks the shard key, an option is not known, its condition calls functions of your own, data is not in UTF-8, or the transaction cannot reach several shards.",
        what_to_do: "List the shard key; or COPY (SELECT … WHERE key = …) TO, or one shard at a time: SET shardway.shard = '<shard>'.",
    },
    Code {
        code: "SW119",
        sqlstate: "0A000",
        title: "Override contradicts the keys",
        meaning: "The override names another shard than the statement's own keys or tables.",
        what_to_do: "Leave the override out: the statement's own keys decide.",
    },
    Code {
        code: "SW120",
        sqlstate: "22023",
        title: "Override names no shard",
        meaning: "shardway.shard must be the name of a shard of this database.",
        what_to_do: "Use one of the names in the configuration.",
    },
    Code {
        code: "SW121",
        sqlstate: "22P02",
        title: "Override key cannot be used",
        meaning: "shardway.key must be a value of the key type of the one group that the statement touches.",
        what_to_do: "Give a value of the group's key type, or name the shard instead.",
    },
    Code {
        code: "SW122",
        sqlstate: "22023",
        title: "Setting has no such value",
        meaning: "A setting shardway.… that does not exist, or a value that it does not take; settings of a startup packet are checked too.",
        what_to_do: "shardway.shard takes the name of a shard, shardway.key a value of a key; shardway.role only 'primary' so far.",
    },
    Code {
        code: "SW123",
        sqlstate: "0A000",
        title: "Servers do not fit the configuration",
        meaning: "What the servers have (a key column of another type, one whose type changes values, a collation under which unequal bytes are equal, a database that is not UTF8) would make routing by key give wrong answers, so that nothing is routed by key until it is mended.",
        what_to_do: "shardway check --connect lists everything that does not fit. Mend the tables or the configuration; the servers are looked at again by themselves and after a reload.",
    },
    Code {
        code: "SW124",
        sqlstate: "0A000",
        title: "Replication connection names no shard",
        meaning: "A connection with replication in its startup packet is passed through to one server, and the database has several shards.",
        what_to_do: "Name the shard: options='-c shardway.shard=<shard>' in the connection string or in PGOPTIONS; dbname=<database>@<shard> where options cannot be given, as in CREATE SUBSCRIPTION.",
    },
    Code {
        code: "SW125",
        sqlstate: "0A000",
        title: "Sets off what acts on one shard only",
        meaning: "The table has a trigger, rule, policy, unique constraint, default or foreign key that would look at, count or change the rows of one shard where one PostgreSQL would take all rows.",
        what_to_do: "shardway check --connect lists them with their remedies. When the application sees to it that each shard may act by itself, list the object in the database's per_shard.",
    },
    Code {
        code: "SW126",
        sqlstate: "53200",
        title: "Too many rows of several shards",
        meaning: "A statement over several shards is computed by one of them over the rows of all, and these are more than one statement may hold.",
        what_to_do: "Restrict the rows in WHERE, or the statement to one shard by the shard key.",
    },
    Code {
        code: "SW127",
        sqlstate: "0A000",
        title: "Rows of several shards do not fit together",
        meaning: "A shard's table has other columns than were known when the statement was planned, or its rows are not text in UTF-8.",
        what_to_do: "Repeat the statement when the servers have been looked at again, within half a minute; shardway check --connect tells how shards differ.",
    },
    Code {
        code: "SW128",
        sqlstate: "0A000",
        title: "Cursor or portal over several shards",
        meaning: "The rows of a cursor or portal come from several shards, and it was to go back (SCROLL, PRIOR, ABSOLUTE and their like), to outlive its transaction (WITH HOLD), to give its rows in another format or by another DateStyle (or the like) than before, or to go on behind another statement of the same batch outside of a transaction.",
        what_to_do: "Read it forward within a transaction, with FETCH, MOVE and CLOSE in messages of their own; or restrict the query to one shard by the shard key.",
    },
    Code {
        code: "SW129",
        sqlstate: "0A000",
        title: "EXECUTE of a command",
        meaning: "SQL's EXECUTE names what Parse has prepared of a command (BEGIN, RESET, LISTEN, another EXECUTE), or set_config in a transaction over several shards: what it does to the session would not be followed.",
        what_to_do: "Send the command itself, or Bind and Execute it.",
    },
    Code {
        code: "SW131",
        sqlstate: "0A000",
        title: "Sharding cannot hold the schema change",
        meaning: "A constraint would look at the rows of one shard only, the shard key's column would change, or a table would be where the configuration does not look for it.",
        what_to_do: "Unique constraints need the shard key, foreign keys the shard keys of both tables or a reference table; see Schema changes in docs/routing.md.",
    },
    Code {
        code: "SW132",
        sqlstate: "01000",
        title: "Done on some shards only",
        meaning: "A command that no transaction can hold (VACUUM, CREATE INDEX CONCURRENTLY) runs on one shard after the other, and failed on one of them. The warning says where it is done; the error behind it says why not everywhere.",
        what_to_do: "Remove the cause and repeat it on the shards where it is not done, by a comment /* shardway: shard=<shard> */ at its start; drop an index that is invalid first.",
    },
    Code {
        code: "SW141",
        sqlstate: "0A000",
        title: "Copies would differ",
        meaning: "A write to a reference table was done on every shard, and the shards would have written different rows: a default is another on each, the statement leaves open which rows it takes, or the copies were not the same before. Nothing was written.",
        what_to_do: "Give values for columns whose default is a time, a number of a sequence or random; compare the copies.",
    },
    Code {
        code: "SW142",
        sqlstate: "0A000",
        title: "Behind a write to several shards",
        meaning: "In a pipeline outside of a transaction, a command that is no read or write of rows follows a write to several shards, which is committed at the Sync.",
        what_to_do: "Send Sync behind the write, or begin a transaction before it.",
    },
    Code {
        code: "SW143",
        sqlstate: "57P03",
        title: "No value for a default",
        meaning: "An INSERT leaves a column to its default that is computed before its rows have their shards: by a sequence, whose numbers the home shard gives, or as an id, for which the home shard lends the time. It could not be asked, or no control role is configured. Nothing was written.",
        what_to_do: "Check that the home shard is up and that the control role may log in there; repeat the statement, or give the value in it.",
    },
    Code {
        code: "SW144",
        sqlstate: "0A000",
        title: "A sequence that begins anew",
        meaning: "RESTART, setval, or another INCREMENT, of a sequence that gives numbers to sharded tables: proxies hold numbers that were drawn ahead (`sequence_block` above 1), or its numbers must be unique and a unique index without the shard key cannot see those of other shards.",
        what_to_do: "Do it on the home shard under a comment /* shardway: shard=<home> */ when no number can come twice; TRUNCATE … RESTART IDENTITY is possible with sequence_block = 1.",
    },
    Code {
        code: "SW151",
        sqlstate: "0A000",
        title: "Numbers of types in binary values",
        meaning: "A result was asked for in binary format that holds composite values, or arrays or ranges of them: these hold the numbers of the database's own types, which differ from shard to shard.",
        what_to_do: "Ask for the result in text format, or select the composite's columns one by one.",
    },
    Code {
        code: "SW152",
        sqlstate: "0A000",
        title: "View over rows of several shards",
        meaning: "The view takes rows of several shards together (aggregates without the shard key in GROUP BY, DISTINCT, LIMIT, windows, UNION, joins off the key), is materialized over sharded tables, or is not defined alike on all shards.",
        what_to_do: "Write its query in place of its name: what one table's rows decide is then computed over all shards. Or GROUP BY the shard key; or read one shard's: SET shardway.shard = '<shard>'.",
    },
    Code {
        code: "SW161",
        sqlstate: "55000",
        title: "Table not seen yet",
        meaning: "The statement names a table that neither the configuration lists nor any server was seen to have, and not all servers could be asked about it just now. It is not taken for one of unlisted_tables, as it may belong elsewhere. Or it makes rows of a table on several shards, of which none, or none that came just now, could be asked what gives their numbers.",
        what_to_do: "Repeat the statement; if it goes on, see with shardway check --connect which server does not answer, or list the table in the configuration.",
    },
    Code {
        code: "SW162",
        sqlstate: "55000",
        title: "Out of touch with the other proxies",
        meaning: "The home shard has not taken this proxy's heartbeat for six seconds, so that other proxies do not wait any more until it knows what they change. Tables that nothing lists are not used meanwhile: another proxy may have made one of that name that lives elsewhere. Listed tables are used as ever.",
        what_to_do: "Bring the home shard back, or list the table in the configuration.",
    },
    Code {
        code: "SW163",
        sqlstate: "55000",
        title: "Schema change cannot be announced",
        meaning: "A schema change is announced to the other proxies on the home shard before it is committed, and the home shard cannot be reached. Nothing was changed.",
        what_to_do: "Repeat the command when the home shard is back.",
    },
    Code {
        code: "SW164",
        sqlstate: "01000",
        title: "Schema change not taken over by all proxies",
        meaning: "A warning: the schema change is committed, and proxies that are alive have not taken it over within eight seconds, or the home shard could not be asked. Such a proxy does not rely on what it knew, until it has looked at the servers again.",
        what_to_do: "See with SHOW PROXIES in the console which proxy stays behind, and in its log why.",
    },
    Code {
        code: "SW165",
        sqlstate: "55000",
        title: "Map differs",
        meaning: "The configuration says that keys of this group are on other shards than the map in shardway.map on the home shard says, by which other proxies write: rows would be written where nobody looks for them. Statements on the group's tables are refused by this proxy.",
        what_to_do: "shardway check --connect says what differs. Correct the configuration; or, if no row has to move, make it the map of all: shardway check --connect --accept-map prints the SQL.",
    },
    Code {
        code: "SW166",
        sqlstate: "57P03",
        title: "Map not read yet",
        meaning: "Which shard owns which keys is kept in shardway.map on the home shard, and this proxy has not read it since it was started or given another configuration: the home shard cannot be reached by the control role, its schema cannot be used, or, on a database that no proxy has served before, some shard has not been reached. What the configuration says may be outdated by a reshard, so that sharded and reference tables, and schema changes, are refused. Tables of one shard are served.",
        what_to_do: "See why in the log and with shardway check --connect; the proxy goes on trying. Run the statement again.",
    },
    Code {
        code: "SW167",
        sqlstate: "55000",
        title: "Shard of the map missing in the configuration",
        meaning: "The map that all proxies share names a shard that this proxy's configuration does not have: rows are there, or copies of reference tables, that this proxy could neither read nor write. Sharded and reference tables, and schema changes, are refused by this proxy.",
        what_to_do: "Add the shard to this proxy's configuration; shardway check --connect says which.",
    },
    Code {
        code: "SW168",
        sqlstate: "57P03",
        title: "Home shard behind",
        meaning: "A shard keeps a later version of the map of all proxies than the home shard, which has lost what it had committed: a standby without its last transactions was promoted, or an older backup was restored. Until the home shard has the latest map again, sharded and reference tables, and schema changes, are refused. The first proxy that reaches all shards restores the map from the latest copy; that does not happen where two maps of one number differ.",
        what_to_do: "Nothing, if it passes within seconds. Else see the log: make the shards reachable; of two maps of one number, decide which is right and delete the row of the other from shardway.map.",
    },
    Code {
        code: "SW169",
        sqlstate: "55000",
        title: "Kept by a newer version",
        meaning: "Proxies of a newer version share these servers, and what they keep there is not for this version: the schema \"shardway\" has a form that asks for newer proxies, or the map of the shards says something that this version does not know. Sharded and reference tables, and schema changes, are refused by this proxy, whatever it knew before. Tables of one shard are served.",
        what_to_do: "Replace this proxy by one of the newer version. Versions that follow one on the other work together; this one is older.",
    },
    Code {
        code: "SW174",
        sqlstate: "0A000",
        title: "Rows are on two shards",
        meaning: "A reshard moves rows of this group: they are on two shards until it is finished, and each shard must leave out those that it does not own. The statement is of a form that cannot be given the condition for that; or a foreign key of a table to a reference table, or a unique index without the shard key, has met rows on such a shard, or would change them: PostgreSQL does not ask there whose they are. All other statements on the group's tables work meanwhile.",
        what_to_do: "Restrict the statement to one key, or write it in another form, or repeat it when the reshard is finished: shardway reshard status shows how far it is.",
    },
    Code {
        code: "SW201",
        sqlstate: "53300",
        title: "Waited too long for a server connection",
        meaning: "Every connection of this user to the shard was in use for pool.wait_timeout.",
        what_to_do: "Raise pool.size, or end transactions sooner; SHOW POOLS in the console shows who waits, SHOW PINS who keeps a connection and why.",
    },
    Code {
        code: "SW202",
        sqlstate: "08P01",
        title: "Server connection out of step",
        meaning: "A server sent what the protocol does not allow here. The connection to it and the session are closed, because no answer on it can be trusted.",
        what_to_do: "Connect again. If it comes back, look at what stands between Shardway and the server, and report it.",
    },
    Code {
        code: "SW203",
        sqlstate: "08006",
        title: "Server connection lost",
        meaning: "The server closed the connection within a statement or a transaction. Whether the last statement took effect is unknown.",
        what_to_do: "Connect again, and check before repeating a write.",
    },
    Code {
        code: "SW204",
        sqlstate: "08006",
        title: "Server cannot be reached",
        meaning: "No connection to the shard's server could be made, or it refused Shardway's login.",
        what_to_do: "Check that the server runs and that its address and credentials in the configuration are right: shardway check --connect tries them.",
    },
    Code {
        code: "SW205",
        sqlstate: "53300",
        title: "Too many clients",
        meaning: "server.max_clients connections are open.",
        what_to_do: "Raise server.max_clients, or let applications keep fewer connections.",
    },
    Code {
        code: "SW206",
        sqlstate: "57P01",
        title: "Pool closed",
        meaning: "The pool was closed while the client waited for a connection, by a reload or at the end of the process.",
        what_to_do: "Repeat the statement.",
    },
    Code {
        code: "SW207",
        sqlstate: "53300",
        title: "Too many replication connections",
        meaning: "pool.replication_size replication connections to the shard are open; 0 refuses all of them.",
        what_to_do: "Raise pool.replication_size, and max_wal_senders of the server with it; SHOW SERVERS in the console shows who replicates.",
    },
    Code {
        code: "SW208",
        sqlstate: "08006",
        title: "A shard was lost",
        meaning: "Several shards worked on the statement, and the connection to one of them ended before it had answered. The others were stopped; rows that came before the error are not the whole answer.",
        what_to_do: "Check that the shard's server runs, and repeat the statement.",
    },
    Code {
        code: "SW209",
        sqlstate: "55000",
        title: "Another session's number",
        meaning: "currval or lastval outside of the transaction that drew the number, on a server connection where it was not drawn or that another session has used since: PostgreSQL would tell the number of another session.",
        what_to_do: "Use INSERT … RETURNING, or ask in the transaction that draws the number; pool.mode = \"session\" keeps a connection for each session.",
    },
    Code {
        code: "SW211",
        sqlstate: "08006",
        title: "Server refused the login",
        meaning: "A server did not take the password, or does not let the role in. It is tried again after a pause that grows to two seconds; meanwhile clients are told at once.",
        what_to_do: "Check the user's backend_user and backend_password, or the role on the server. A reload takes a changed password over for sessions that are open too.",
    },
    Code {
        code: "SW212",
        sqlstate: "08006",
        title: "Passthrough does not open the server",
        meaning: "What the client has shown does not open this shard: the shard keeps another SCRAM verifier for the role, asks for another kind of proof, or no client has shown anything yet.",
        what_to_do: "Give the role the same verifier on every shard (ALTER ROLE … PASSWORD 'SCRAM-SHA-256$…' with the home shard's rolpassword), or use auth = \"passthrough-password\".",
    },
    Code {
        code: "SW221",
        sqlstate: "08006",
        title: "LISTEN is not in force",
        meaning: "A shared listener could not be told to listen on the channel, on one shard at least; the LISTEN was not done.",
        what_to_do: "Check that every shard's server runs: SHOW LISTENERS in the console has the reason. Then LISTEN again.",
    },
    Code {
        code: "SW222",
        sqlstate: "08006 or 01000",
        title: "Notifications may be missing",
        meaning: "The shared connection that listens on a shard was lost; what was notified there until it listened again did not arrive. The session ends, or with pool.listen_gap = \"warn\" it is warned.",
        what_to_do: "Connect and LISTEN again; then read from the tables what notifications would have told.",
    },
    Code {
        code: "SW223",
        sqlstate: "53400",
        title: "Too many notifications wait",
        meaning: "The client did not take its notifications, or stayed in a transaction, until pool.listen_queue bytes of them waited.",
        what_to_do: "Read the connection on which you LISTEN and end its transactions, or raise pool.listen_queue.",
    },
    Code {
        code: "SW224",
        sqlstate: "0A000 or 22P05",
        title: "Notification in another encoding",
        meaning: "Shared listeners hear in UTF-8: a channel or payload beyond ASCII cannot be given to a client of another client_encoding, and such a channel name is not listened on where the server's encoding is another.",
        what_to_do: "SET client_encoding = 'UTF8', or use ASCII; session mode converts as PostgreSQL does.",
    },
    Code {
        code: "SW225",
        sqlstate: "0A000",
        title: "Channels asked for within a transaction",
        meaning: "pg_listening_channels() is answered by a backend that is told the session's channels before, which takes effect outside a transaction only.",
        what_to_do: "Ask before BEGIN, in a batch of its own.",
    },
    Code {
        code: "SW301",
        sqlstate: "0A000",
        title: "Transaction stays on its shard",
        meaning: "The transaction is on one shard, and the statement belongs to another, to which it cannot go on: it was not begun by BEGIN in a message of its own, is not READ COMMITTED, the session keeps its server connection, a function may have changed settings on the first shard, it runs under SET ROLE, or both shards were asked for the transaction's time.",
        what_to_do: "The message says which. Change that, or let one transaction use keys of one shard only.",
    },
    Code {
        code: "SW302",
        sqlstate: "0A000",
        title: "Query message over several shards",
        meaning: "A Query message with several statements is one transaction, and its statements belong to different shards.",
        what_to_do: "Send the statements one by one.",
    },
    Code {
        code: "SW303",
        sqlstate: "0A000",
        title: "Setting changed within one message",
        meaning: "A Query message changes a setting and has statements behind it that were planned with the settings before it.",
        what_to_do: "Send SET, RESET, DISCARD, ROLLBACK, and COMMIT behind SET LOCAL in messages of their own.",
    },
    Code {
        code: "SW304",
        sqlstate: "0A000",
        title: "Command for several shards not by itself",
        meaning: "COMMIT, SAVEPOINT, SET or the like in a transaction over several shards came with other statements in one Query message, or was bound before the transaction reached them. Or statements stood behind the end of a failed transaction in one message that cannot run one by one.",
        what_to_do: "Send such commands in messages of their own.",
    },
    Code {
        code: "SW305",
        sqlstate: "55000",
        title: "Two-phase commit is not ready",
        meaning: "The transaction wrote on several shards, and the database has no control role, or a shard is not prepared for it or has max_prepared_transactions = 0. It was rolled back.",
        what_to_do: "Configure the control role, set max_prepared_transactions on every server, and run shardway check --connect.",
    },
    Code {
        code: "SW306",
        sqlstate: "0A000",
        title: "Transaction cannot be prepared",
        meaning: "A transaction that wrote on several shards did what PostgreSQL does not prepare (LISTEN, NOTIFY, temporary tables, WITH HOLD cursors on more than one shard, PREPARE TRANSACTION, SET ROLE).",
        what_to_do: "Do such things in a transaction of one shard.",
    },
    Code {
        code: "SW307",
        sqlstate: "08006",
        title: "Shard lost before the commit",
        meaning: "A shard's connection was lost before a transaction over several shards was decided; it was rolled back on all of them.",
        what_to_do: "Repeat the transaction.",
    },
    Code {
        code: "SW308",
        sqlstate: "40001",
        title: "Commit did not take effect",
        meaning: "The shard that decides was lost at its COMMIT, and was asked afterwards: the transaction is rolled back on every shard.",
        what_to_do: "Repeat the transaction.",
    },
    Code {
        code: "SW309",
        sqlstate: "08007",
        title: "Commit in doubt",
        meaning: "The shard that decides was lost at its COMMIT and cannot be asked. When it is back, the transaction is finished on every shard as it decided.",
        what_to_do: "Look whether it took effect before repeating it; SHOW TRANSACTIONS in the console lists what is not finished.",
    },
    Code {
        code: "SW310",
        sqlstate: "08007",
        title: "Committed, not finished everywhere",
        meaning: "The transaction is committed; a shard was lost before it could be told, or somebody else has ended its part. Recovery finishes what is left.",
        what_to_do: "Do not repeat it. SHOW TRANSACTIONS in the console lists what is not finished; the log names parts that were gone.",
    },
    Code {
        code: "SW311",
        sqlstate: "40P01",
        title: "Deadlock over shards",
        meaning: "Transactions waited for each other's locks on different shards, so that no server could see it. The youngest of them was ended, as PostgreSQL ends one of those that wait on one server; DETAIL tells who waited for whom.",
        what_to_do: "Repeat the transaction. If it comes often, let transactions take their locks in one order, as by the shard key.",
    },
    Code {
        code: "SW341",
        sqlstate: "0A000",
        title: "Dump that would lack tables",
        meaning: "A transaction with a snapshot on every shard (shardway.read_consistency) reads the catalogs of one shard and locks the tables that it finds there, as pg_dump does; other shards have tables that it has not.",
        what_to_do: "Dump each shard by itself (shardway.shard), or keep all tables that are not sharded on one shard.",
    },
    Code {
        code: "SW401",
        sqlstate: "57P03",
        title: "Keys that move cannot be located",
        meaning: "A reshard moves these keys, and this proxy cannot ask the home shard whose they are by now: serving them might show rows that are out of date.",
        what_to_do: "Bring the home shard back; statements on other keys and tables go on meanwhile. SHOW PROXIES in the console tells who hears from it.",
    },
    Code {
        code: "SW402",
        sqlstate: "40001",
        title: "Keys moved under an open transaction",
        meaning: "A reshard has given keys that the transaction touches to another shard since it began: the transaction promises one snapshot, or its proxy was not heard of while that happened.",
        what_to_do: "Repeat the transaction.",
    },
    Code {
        code: "SW403",
        sqlstate: "55006",
        title: "Tables of which rows move",
        meaning: "A schema change names tables of a group of which a reshard moves rows. Changes that leave all values as they are and refuse none are made on both sides; this one is not, and the detail says why. Or it is a TRUNCATE, which is done as DELETE meanwhile, where that does the same; the detail says what would differ.",
        what_to_do: "Wait until the reshard is finished, or end it by shardway reshard abort. Columns can be added while it waits for a cutover or at reverse. DELETE FROM is possible at any time.",
    },
    Code {
        code: "SW404",
        sqlstate: "40001",
        title: "Write refused by its shard",
        meaning: "The shard has given the keys away, and this proxy had not heard of it: it was cut off, or stood still, while the others moved on. It looks again at once.",
        what_to_do: "Repeat the transaction.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{
            effects::{Fired, Hazard, HazardKind},
            snapshot::Standing,
        },
        plan::unroutable::{KeyProblem, Undoubled, Unheld},
        proxy::several::Stays,
    };

    fn unknown_maps() -> [Unroutable; 4] {
        let table = || "orders".to_owned();
        [
            Unroutable::MapUnknown(Standing::Unread),
            Unroutable::MapUnknown(Standing::Lacking { shard: table() }),
            Unroutable::MapUnknown(Standing::Newer {
                shard: table(),
                what: table(),
            }),
            Unroutable::MapUnknown(Standing::Behind {
                shard: Some(table()),
                seen: 2,
                kept: 1,
            }),
        ]
    }

    fn every_refusal() -> Vec<Unroutable> {
        let table = || "orders".to_owned();
        vec![
            Unroutable::Unsupported { feature: "x" },
            Unroutable::Unpinned {
                table: table(),
                key: table(),
            },
            Unroutable::SeveralShards { shards: vec![] },
            Unroutable::UnknownTable { table: table() },
            Unroutable::ViewOverShards { view: table() },
            Unroutable::KeyMissing {
                table: table(),
                key: table(),
            },
            Unroutable::KeyNull {
                table: table(),
                key: table(),
            },
            Unroutable::KeyExpression {
                table: table(),
                key: table(),
            },
            Unroutable::KeyChanged {
                table: table(),
                key: table(),
            },
            Unroutable::KeyValue {
                key: table(),
                problem: KeyProblem::Type,
            },
            Unroutable::NoShardForKey { group: table() },
            Unroutable::ReferenceWrite { table: table() },
            Unroutable::Function { name: table() },
            Unroutable::PerShard { command: "x" },
            Unroutable::NotUnderstood,
            Unroutable::NotUtf8,
            Unroutable::TooDeep,
            Unroutable::ColumnsUnknown { table: table() },
            Unroutable::Copy { table: table() },
            Unroutable::OverrideContradicts {
                named: table(),
                keys: table(),
            },
            Unroutable::OverrideShard { shard: table() },
            Unroutable::OverrideKey { key: table() },
            Unroutable::CannotHold {
                table: table(),
                what: Unheld::Name,
            },
            Unroutable::MapDiffers { group: table() },
            Unroutable::Doubled {
                group: table(),
                what: Undoubled::Text,
            },
            Unroutable::PerShardObject {
                table: table(),
                hazard: Hazard {
                    name: table(),
                    kind: HazardKind::Default,
                    fired: Fired::INSERT,
                },
            },
        ]
    }

    #[test]
    fn every_refusal_has_its_code_in_the_table() {
        let all: Vec<Unroutable> = every_refusal().into_iter().chain(unknown_maps()).collect();
        let of_routing = |code: &&Code| {
            ("SW101"..="SW121").contains(&code.code)
                || ("SW165"..="SW169").contains(&code.code)
                || matches!(code.code, "SW174" | "SW125" | "SW131" | "SW152")
        };
        assert_eq!(all.len(), CODES.iter().filter(of_routing).count());
        for why in all {
            let code = code_named(why.code()).expect("every code is in the table");
            assert!(code.sqlstate.contains(why.sqlstate()), "{why:?}");
            let notice = unroutable(&why);
            assert!(
                notice
                    .detail
                    .is_some_and(|detail| detail.ends_with(&format!("({})", why.code())))
            );
            assert!(notice.hint.is_some());
        }
    }

    #[test]
    fn codes_are_in_order_and_each_says_something_of_its_own() {
        assert!(CODES.is_sorted_by(|one, next| one.code < next.code));
        for (at, one) in CODES.iter().enumerate() {
            for other in &CODES[at + 1..] {
                assert_ne!(one.title, other.title);
                assert_ne!(one.meaning, other.meaning);
            }
        }
    }

    #[test]
    fn a_refusal_tells_its_code_and_an_error_of_a_server_has_none() {
        let refused = unroutable(&Unroutable::NotUtf8);
        assert_eq!(code_of(&refused.into()), Some("SW115"));
        assert_eq!(
            code_of(&session::several::second_shard("s0", "s1 (old)", Stays::Code).into()),
            Some("SW301")
        );
        assert_eq!(code_of(&session::malformed().into()), None);
        assert_eq!(
            code_of(&Words::Servers(b"C0A000\0D(SW101)\0\0".to_vec())),
            None
        );
    }
}
