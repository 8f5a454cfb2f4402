//! Statements whose description is longer than what is usually held whole: compared from backend to backend all the same.

use crate::{client::batch, harness::same};

#[test]
fn a_wide_statement_whose_last_column_has_changed_is_refused() {
    same(|stage| {
        let table = format!("wide_{:?}", stage.way).to_lowercase();
        let columns: Vec<_> = (0..1500).map(|at| format!("c{at:0>60} int")).collect();
        let mut seen = stage.query(&format!("create table {table} ({})", columns.join(",")));
        let sql = format!("select * from {table}");
        let prepared = batch().parse("a", &sql).describe("a").sync();
        stage.step(&prepared.0, 1);
        for _ in 0..2 {
            seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        }
        let last = format!("c{:0>60}", 1499);
        seen.extend(stage.query(&format!("alter table {table} alter {last} type text")));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        }
        seen
    });
}

#[test]
fn a_statement_of_many_parameters_keeps_them() {
    same(|stage| {
        let table = format!("many_{:?}", stage.way).to_lowercase();
        let mut seen = stage.query(&format!("create table {table} (n int)"));
        let parameters: Vec<_> = (1..=20_000).map(|at| format!("${at}")).collect();
        let sql = format!(
            "select 1 from {table} where n in ({})",
            parameters.join(",")
        );
        let prepared = batch().parse("a", &sql).describe("a").sync();
        stage.step(&prepared.0, 1);
        seen.extend(stage.query(&format!("alter table {table} alter n type int8")));
        let values = vec!["1"; 20_000];
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &values).sync().0, 1));
        }
        seen
    });
}
