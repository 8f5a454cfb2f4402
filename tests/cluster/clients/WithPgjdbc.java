// pgjdbc as an application uses it. Prints what it sees.
// The server is in PG* variables; the argument is the first customer id that this run may write.

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import org.postgresql.PGConnection;
import org.postgresql.util.PSQLException;

public class WithPgjdbc {
    interface Act {
        void run() throws Exception;
    }

    static long base;

    static void show(String what, Object value) {
        System.out.println(what + ": " + value);
    }

    static void attempt(String what, Act act) throws Exception {
        try {
            act.run();
            show(what, "done");
        } catch (SQLException error) {
            SQLException cause = error instanceof BatchUpdateException ? error.getNextException() : error;
            String message = cause instanceof PSQLException && ((PSQLException) cause).getServerErrorMessage() != null
                ? ((PSQLException) cause).getServerErrorMessage().getMessage() : "of the driver";
            show(what, cause.getSQLState() + " " + message);
        }
    }

    static String rows(ResultSet rows) throws SQLException {
        StringBuilder out = new StringBuilder();
        int columns = rows.getMetaData().getColumnCount();
        while (rows.next()) {
            for (int column = 1; column <= columns; column++) out.append(rows.getString(column)).append('|');
            out.append(';');
        }
        return out.toString();
    }

    static Connection connect(String password) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", password);
        properties.setProperty("prepareThreshold", "2");
        String sslmode = System.getenv("PGSSLMODE");
        properties.setProperty("sslmode", sslmode == null ? "disable" : sslmode);
        return DriverManager.getConnection("jdbc:postgresql://" + System.getenv("PGHOST") + ":"
            + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"), properties);
    }

    static void reads(Connection conn) throws Exception {
        try (PreparedStatement one = conn.prepareStatement("SELECT id, name, country FROM customers WHERE id = ?")) {
            for (int round = 0; round < 2; round++) {
                for (long id = 1; id <= 40; id++) {
                    one.setLong(1, id);
                    show("prepared", rows(one.executeQuery()));
                }
            }
        }
        conn.setAutoCommit(false);
        try (PreparedStatement few = conn.prepareStatement("SELECT order_id, line, product FROM order_items WHERE customer_id = ? ORDER BY order_id, line")) {
            few.setFetchSize(2);
            few.setLong(1, 7);
            show("in portions", rows(few.executeQuery()));
        }
        conn.commit();
        conn.setAutoCommit(true);
    }

    static void writes(Connection conn) throws Exception {
        conn.setAutoCommit(false);
        try (PreparedStatement insert = conn.prepareStatement("INSERT INTO customers VALUES (?, ?, ?, ?)")) {
            insert.setLong(1, base);
            insert.setString(2, "Ünïcødé 漢字 🎉 'q' \\");
            insert.setString(3, "e");
            insert.setNull(4, Types.VARCHAR);
            show("inserted", insert.executeUpdate());
            Savepoint before = conn.setSavepoint("before");
            attempt("duplicate", insert::executeUpdate);
            conn.rollback(before);
        }
        try (PreparedStatement batch = conn.prepareStatement("INSERT INTO orders VALUES (?, ?, '2026-05-01', 2.50)")) {
            for (long order = 1; order <= 5; order++) {
                batch.setLong(1, base);
                batch.setLong(2, order);
                batch.addBatch();
            }
            show("batch", java.util.Arrays.toString(batch.executeBatch()));
        }
        conn.commit();
        conn.setAutoCommit(true);
        try (Statement plain = conn.createStatement()) {
            show("customer", rows(plain.executeQuery("SELECT * FROM customers WHERE id = " + base)));
            show("orders", rows(plain.executeQuery("SELECT count(*), sum(total) FROM orders WHERE customer_id = " + base)));
        }
        attempt("failing batch", () -> {
            try (PreparedStatement batch = conn.prepareStatement("INSERT INTO orders VALUES (?, ?, '2026-05-01', 2.50)")) {
                for (long order = 5; order <= 7; order++) {
                    batch.setLong(1, base);
                    batch.setLong(2, order);
                    batch.addBatch();
                }
                batch.executeBatch();
            }
        });
        try (Statement plain = conn.createStatement()) {
            show("orders", rows(plain.executeQuery("SELECT count(*) FROM orders WHERE customer_id = " + base)));
            show("deleted", plain.executeUpdate("DELETE FROM orders WHERE customer_id = " + base));
            show("deleted", plain.executeUpdate("DELETE FROM customers WHERE id = " + base));
        }
    }

    static void errors(Connection conn) throws Exception {
        try (Statement plain = conn.createStatement()) {
            attempt("syntax", () -> plain.executeQuery("SELEC 1"));
            attempt("still usable", () -> plain.executeQuery("SELECT id FROM customers WHERE id = 1"));
            conn.setAutoCommit(false);
            plain.executeQuery("SELECT id FROM customers WHERE id = 1");
            attempt("syntax in a transaction", () -> plain.executeQuery("SELECT FROM WHERE"));
            attempt("then", () -> plain.executeQuery("SELECT id FROM customers WHERE id = 1"));
            conn.rollback();
            attempt("after rollback", () -> plain.executeQuery("SELECT id FROM customers WHERE id = 1"));
            conn.rollback();
            conn.setAutoCommit(true);
        }
    }

    static void copy(Connection conn) throws Exception {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        conn.unwrap(PGConnection.class).getCopyAPI()
            .copyOut("COPY (SELECT * FROM orders WHERE customer_id = 7 ORDER BY id) TO STDOUT", out);
        show("copy", out.toString(StandardCharsets.UTF_8));
    }

    // The driver sends one cancel per execution, and one that comes before the query has begun is lost, as PostgreSQL
    // says: then the query ends by itself and is tried again.
    static void cancel(Connection conn) throws Exception {
        for (int attempt = 1; attempt <= 20; attempt++) {
            if (isCancelled(conn)) {
                show("cancel", "57014");
                return;
            }
        }
        show("cancel", "never");
    }

    static boolean isCancelled(Connection conn) throws Exception {
        AtomicBoolean ended = new AtomicBoolean();
        try (Statement sleeper = conn.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    while (!ended.get()) {
                        Thread.sleep(50);
                        sleeper.cancel();
                    }
                } catch (Exception error) {
                    throw new RuntimeException(error);
                }
            });
            canceller.start();
            try {
                sleeper.executeQuery("SELECT pg_sleep(2)");
                return false;
            } catch (SQLException error) {
                if (!"57014".equals(error.getSQLState())) throw error;
                return true;
            } finally {
                ended.set(true);
                canceller.join();
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        base = Long.parseLong(arguments[0]);
        attempt("wrong password", () -> connect("not it").close());
        try (Connection conn = connect(System.getenv("PGPASSWORD"))) {
            reads(conn);
            writes(conn);
            errors(conn);
            copy(conn);
            cancel(conn);
        }
    }
}
