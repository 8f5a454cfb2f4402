// pgjdbc as an application uses it: each check stands alone and prints "ok NAME" or "not ok NAME".

import java.io.*;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

public class Pgjdbc {
    interface Check {
        void run(Connection on) throws Exception;
    }

    static Connection connect(String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "postgres");
        properties.setProperty("sslmode", "disable");
        properties.setProperty("socketTimeout", "20");
        for (int at = 0; at < options.length; at += 2) properties.setProperty(options[at], options[at + 1]);
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + System.getenv("PGPORT") + "/postgres", properties);
    }

    static void check(String name, Check check, String... options) {
        try (Connection on = connect(options)) {
            check.run(on);
            System.out.println("ok " + name);
        } catch (Throwable problem) {
            problem.printStackTrace();
            System.out.println("not ok " + name);
        }
    }

    static void equal(Object found, Object wanted) {
        if (!Objects.equals(found, wanted)) throw new AssertionError(found + " is not " + wanted);
    }

    static String value(Connection on, String sql) throws SQLException {
        try (Statement statement = on.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void does(Connection on, String sql) throws SQLException {
        try (Statement statement = on.createStatement()) {
            statement.execute(sql);
        }
    }

    static void fails(String state, Check check, Connection on) throws Exception {
        try {
            check.run(on);
        } catch (SQLException error) {
            SQLException last = error;
            while (last.getNextException() != null) last = last.getNextException();
            equal(last.getSQLState(), state);
            return;
        }
        throw new AssertionError("no error " + state);
    }

    static void statements() {
        for (String mode : List.of("simple", "extended", "extendedForPrepared", "extendedCacheEverything")) {
            check("a statement prepared after two runs, " + mode, on -> {
                try (PreparedStatement add = on.prepareStatement("SELECT ?::int + 1, ?::text")) {
                    for (int round = 0; round < 30; round++) {
                        add.setInt(1, round);
                        add.setString(2, "ü漢🎉" + round);
                        ResultSet rows = add.executeQuery();
                        rows.next();
                        equal(rows.getInt(1), round + 1);
                        equal(rows.getString(2), "ü漢🎉" + round);
                    }
                }
            }, "prepareThreshold", "2", "preferQueryMode", mode);
        }
        check("a batch and the keys it made", on -> {
            does(on, "CREATE TABLE jdbc_batch (id serial PRIMARY KEY, n int)");
            try (PreparedStatement insert = on.prepareStatement("INSERT INTO jdbc_batch (n) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
                for (int n = 0; n < 500; n++) {
                    insert.setInt(1, n);
                    insert.addBatch();
                }
                equal(insert.executeBatch().length, 500);
                ResultSet keys = insert.getGeneratedKeys();
                int seen = 0;
                while (keys.next()) seen++;
                equal(seen, 500);
            }
        });
        check("a batch rewritten to many values", on -> {
            does(on, "CREATE TABLE jdbc_rewritten (n int)");
            try (PreparedStatement insert = on.prepareStatement("INSERT INTO jdbc_rewritten VALUES (?)")) {
                for (int n = 0; n < 300; n++) {
                    insert.setInt(1, n);
                    insert.addBatch();
                }
                insert.executeBatch();
            }
            equal(value(on, "SELECT count(*) FROM jdbc_rewritten"), "300");
        }, "reWriteBatchedInserts", "true");
        check("rows in portions within a transaction", on -> {
            on.setAutoCommit(false);
            try (PreparedStatement all = on.prepareStatement("SELECT generate_series(1, 1000)")) {
                all.setFetchSize(64);
                ResultSet rows = all.executeQuery();
                int seen = 0;
                while (rows.next()) seen++;
                equal(seen, 1000);
            }
            on.commit();
        });
        check("a table that changes under a prepared statement", on -> {
            does(on, "CREATE TABLE jdbc_changed (n int); INSERT INTO jdbc_changed VALUES (1)");
            try (PreparedStatement all = on.prepareStatement("SELECT * FROM jdbc_changed")) {
                for (int round = 0; round < 5; round++) all.executeQuery().next();
                does(on, "ALTER TABLE jdbc_changed ALTER n TYPE text USING 'text'");
                for (int round = 0; round < 5; round++) {
                    ResultSet rows = all.executeQuery();
                    rows.next();
                    equal(rows.getString(1), "text");
                }
            }
        }, "prepareThreshold", "1");
    }

    static void transactions() {
        check("savepoints and errors", on -> {
            on.setAutoCommit(false);
            does(on, "CREATE TABLE jdbc_saved (n int PRIMARY KEY)");
            does(on, "INSERT INTO jdbc_saved VALUES (1)");
            Savepoint before = on.setSavepoint("before");
            fails("23505", again -> does(again, "INSERT INTO jdbc_saved VALUES (1)"), on);
            fails("25P02", again -> does(again, "SELECT 1"), on);
            on.rollback(before);
            does(on, "INSERT INTO jdbc_saved VALUES (2)");
            on.commit();
            equal(value(on, "SELECT sum(n) FROM jdbc_saved"), "3");
        });
        check("autosave always", on -> {
            on.setAutoCommit(false);
            does(on, "CREATE TABLE jdbc_autosave (n int)");
            fails("22012", again -> value(again, "SELECT 1 / 0"), on);
            equal(value(on, "SELECT 1"), "1");
            on.commit();
        }, "autosave", "always");
        check("read only and isolation", on -> {
            on.setReadOnly(true);
            on.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            on.setAutoCommit(false);
            equal(value(on, "SHOW transaction_isolation"), "serializable");
            fails("25006", again -> does(again, "CREATE TABLE jdbc_never (n int)"), on);
            on.rollback();
        });
    }

    static void others() {
        check("copy in and out", on -> {
            does(on, "CREATE TABLE jdbc_copied (n int)");
            StringBuilder lines = new StringBuilder();
            for (int n = 0; n < 5000; n++) lines.append(n).append('\n');
            var copy = on.unwrap(PGConnection.class).getCopyAPI();
            equal(copy.copyIn("COPY jdbc_copied FROM STDIN", new StringReader(lines.toString())), 5000L);
            StringWriter out = new StringWriter();
            copy.copyOut("COPY jdbc_copied TO STDOUT", out);
            equal(out.toString(), lines.toString());
        });
        check("a large object", on -> {
            on.setAutoCommit(false);
            var objects = on.unwrap(PGConnection.class).getLargeObjectAPI();
            long oid = objects.createLO();
            var object = objects.open(oid);
            object.write("large".getBytes(StandardCharsets.UTF_8));
            object.seek(0);
            equal(new String(object.read(100), StandardCharsets.UTF_8), "large");
            object.close();
            on.commit();
        });
        check("notifications", on -> {
            does(on, "LISTEN jdbc_channel");
            try (Connection other = connect()) {
                does(other, "NOTIFY jdbc_channel, 'told'");
            }
            PGNotification[] heard = on.unwrap(PGConnection.class).getNotifications(10000);
            equal(heard[0].getParameter(), "told");
        });
        check("a query is cancelled", on -> {
            try (Statement sleeper = on.createStatement()) {
                sleeper.setQueryTimeout(1);
                fails("57014", again -> sleeper.execute("SELECT pg_sleep(10)"), on);
            }
            equal(value(on, "SELECT 1"), "1");
        });
        check("metadata", on -> {
            does(on, "CREATE TABLE jdbc_described (id int PRIMARY KEY, t text NOT NULL)");
            ResultSet columns = on.getMetaData().getColumns(null, "public", "jdbc_described", null);
            List<String> names = new ArrayList<>();
            while (columns.next()) names.add(columns.getString("COLUMN_NAME"));
            equal(names, List.of("id", "t"));
        });
        check("settings of the connection", on -> {
            equal(value(on, "SHOW application_name"), "named");
            on.setClientInfo("ApplicationName", "renamed");
            for (int round = 0; round < 20; round++) equal(value(on, "SHOW application_name"), "renamed");
            on.setSchema("pg_catalog");
            for (int round = 0; round < 20; round++) equal(value(on, "SHOW search_path"), "'pg_catalog'".replace("'", ""));
        }, "ApplicationName", "named");
        check("a long value", on -> {
            try (PreparedStatement echo = on.prepareStatement("SELECT length(?)")) {
                echo.setString(1, "x".repeat(5000000));
                ResultSet rows = echo.executeQuery();
                rows.next();
                equal(rows.getInt(1), 5000000);
            }
        });
    }

    public static void main(String[] arguments) {
        statements();
        transactions();
        others();
    }
}
