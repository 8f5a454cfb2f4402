// pgjdbc with a fetch size: a portal over rows of all shards that is read in parts. Prints what it sees.
// The server is in PG* variables; the argument is not used.

import java.sql.*;

public class CursorsWithPgjdbc {
    static void show(String what, Object value) {
        System.out.println(what + ": " + value);
    }

    public static void main(String[] arguments) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        try (Connection connection = DriverManager.getConnection(url, System.getenv("PGUSER"), System.getenv("PGPASSWORD"))) {
            connection.setAutoCommit(false);
            for (int size : new int[] {1, 25, 400, 1000}) {
                try (PreparedStatement rows = connection.prepareStatement("SELECT id, name FROM customers WHERE id <= ? ORDER BY id");
                     PreparedStatement count = connection.prepareStatement("SELECT count(*) FROM orders WHERE customer_id = ?")) {
                    rows.setFetchSize(size);
                    rows.setLong(1, 400);
                    try (ResultSet found = rows.executeQuery()) {
                        while (found.next()) {
                            long id = found.getLong(1);
                            show("row", id + " " + found.getString(2));
                            if (id % 97 == 0) {
                                count.setLong(1, id);
                                try (ResultSet one = count.executeQuery()) {
                                    one.next();
                                    show("beside", one.getLong(1));
                                }
                            }
                        }
                    }
                }
                connection.commit();
            }
            // Two at once, of which one is left in the middle; a savepoint in between.
            try (Statement first = connection.createStatement(); Statement second = connection.createStatement()) {
                first.setFetchSize(7);
                second.setFetchSize(11);
                ResultSet up = first.executeQuery("SELECT id FROM customers WHERE id <= 400 ORDER BY id");
                ResultSet down = second.executeQuery("SELECT id FROM customers WHERE id <= 400 ORDER BY id DESC LIMIT 100");
                for (int at = 0; at < 100; at++) {
                    up.next();
                    down.next();
                    show("both", up.getLong(1) + " " + down.getLong(1));
                    if (at == 50) {
                        Savepoint savepoint = connection.setSavepoint();
                        try (Statement failing = connection.createStatement()) {
                            failing.executeQuery("SELECT 1 / (id - id) FROM customers WHERE id = 9");
                        } catch (SQLException error) {
                            show("error", error.getSQLState());
                        }
                        connection.rollback(savepoint);
                    }
                }
                show("end", down.next());
                up.close();
            }
            connection.commit();
        }
    }
}
