//! Where a view's rows are, by its definition: such a view is planned like a table, and shards are sent its name, so that
//! whose rights count stays PostgreSQL's business.
//!
//! What must stay true: what each shard shows of a view are, together and without more, the rows that one PostgreSQL
//! with all rows would show; the view's key column is the key of a table whose row each of its rows holds. When in doubt
//! nothing is said, and the view is refused.

use super::{Planner, Target, calls::Calls};
use crate::{
    catalog::{
        group::GroupId,
        shard::ShardId,
        snapshot::{Nature, Placement, Snapshot, TableName},
    },
    plan::{
        Context, Route, Values,
        block::{Analysis, Moment, Place},
        combine::{self, Shape},
        scope::{Nullable, Outputs, resolve},
        unroutable::Unroutable,
    },
    sql::{
        normalize::{Slot, Strings},
        parse,
        scan::slots_of,
        tree::{Body, Column, Depth, Expr, From, Kind, Query, SettingCalls, Statement},
    },
};

/// What a view is to those who read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub placement: Placement,
    pub nature: Nature,
    /// Groups that its place rests on, when it is on one shard.
    pub over: Vec<GroupId>,
    /// The only table that it shows, whose columns it calls by their names: what is written if PostgreSQL lets it be
    /// written through.
    pub of: Option<TableName>,
}

/// Where the rows of a view are, by its definition as `pg_get_viewdef` writes it where nothing but `pg_catalog` is
/// searched, so that every other name stands with its schema.
#[must_use]
pub fn shown(definition: &str, snapshot: &Snapshot) -> Option<Shown> {
    let context = Context {
        search_path: vec!["pg_catalog".to_owned()],
        ..Context::default()
    };
    let parsed = parse::parse(definition).ok()?;
    let [statement] = parsed.as_slice() else {
        return None;
    };
    let Kind::Query(query) = &statement.kind else {
        return None;
    };
    let slots = slots_of(definition, Strings::Standard);
    let viewed = Viewed {
        text: definition,
        slots: &slots,
        statement,
        query,
        context: &context,
        snapshot,
    };
    viewed.shown()
}

struct Viewed<'a> {
    text: &'a str,
    slots: &'a [Slot],
    statement: &'a Statement,
    query: &'a Query,
    context: &'a Context,
    snapshot: &'a Snapshot,
}

impl Viewed<'_> {
    fn shown(&self) -> Option<Shown> {
        let planner = Planner::new(
            self.text.as_bytes(),
            self.slots,
            self.context,
            self.snapshot,
            self.statement,
        );
        let plain = self.query.locking.is_empty() && self.query.into.is_none();
        let whole =
            self.statement.depth == Depth::Whole && self.statement.settings == SettingCalls::None;
        let calls = planner.calls();
        let own = calls.unknown.is_none();
        let harmless = Calls {
            unknown: None,
            leaves: None,
            ..calls
        }
        .are_harmless();
        if !(plain && whole && harmless) {
            return None;
        }
        let mut analysis = Analysis::new(
            self.text.as_bytes(),
            self.slots,
            self.context,
            self.snapshot,
        );
        let outputs = analysis.kind(&self.statement.kind, None);
        let (_, _, target) = planner.plan(&self.statement.kind);
        let shape = combine::shape(self.query, self.text, &self.statement.functions);
        let (placement, of) = match self.fixed(&target) {
            Some(Route::Any) if own => (Placement::Reference, None),
            Some(Route::One(shard)) => (Placement::Single(shard), self.table_of_shard(shard)),
            Some(_) => return None,
            None => self.sharded(&target, shape, &analysis, &outputs)?,
        };
        let nature = match placement {
            // What it shows is that shard's.
            Placement::Single(_) if own => Nature::View,
            _ if !own || analysis.moment == Moment::OfCode => Nature::ViewWithCode,
            _ if shape.is_settled() && !analysis.catalogs && analysis.moment == Moment::Any => {
                Nature::View
            }
            _ => Nature::ViewOfOneShard,
        };
        let over = match placement {
            Placement::Single(_) => self.groups(&analysis),
            Placement::Sharded { .. } | Placement::Reference => Vec::new(),
        };
        Some(Shown {
            placement,
            nature,
            over,
            of,
        })
    }

    /// Where it runs, whatever those who read it say.
    fn fixed(&self, target: &Target) -> Option<Route> {
        match target {
            Target::Fixed(route) => Some(route.clone()),
            Target::ByKey(pins) => {
                let route = pins.route(self.snapshot, &self.values()).ok()?;
                matches!(route, Route::One(_)).then_some(route)
            }
            Target::Refused(_) | Target::Explain(_) | Target::Judge => None,
        }
    }

    /// Whose rows it shows.
    fn groups(&self, analysis: &Analysis<'_>) -> Vec<GroupId> {
        let touches = analysis.touches.get();
        let groups = (0_u16..)
            .zip(&self.snapshot.groups)
            .map(|(at, _)| GroupId(at));
        groups.filter(|group| touches.has(*group)).collect()
    }

    fn values(&self) -> Values<'_> {
        Values {
            text: self.text.as_bytes(),
            slots: self.slots,
            types: &[],
            bind: None,
        }
    }

    /// A view of which each shard shows its part.
    fn sharded(
        &self,
        target: &Target,
        shape: Shape,
        analysis: &Analysis<'_>,
        outputs: &Outputs,
    ) -> Option<(Placement, Option<TableName>)> {
        let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
        let refused = match target {
            Target::Refused(why) => !unpinned(why),
            _ => false,
        };
        // Conditions on keys are found out with the pins.
        let fits = !refused
            && analysis.refusals.iter().all(unpinned)
            && analysis.fixed.is_empty()
            && combine::shares(self.query, analysis);
        if !fits || shape == Shape::Other {
            return None;
        }
        if shape.is_grouped() && !self.groups_by_key(analysis) {
            return None;
        }
        let (group, key_column) = key_of(analysis, outputs)?;
        let placement = Placement::Sharded { group, key_column };
        Some((placement, self.table_of(analysis)))
    }

    /// Whether every group's rows are on one shard.
    fn groups_by_key(&self, analysis: &Analysis<'_>) -> bool {
        combine::grouped_by(self.text).iter().any(|path| {
            let column = Column {
                path: path.clone(),
                star: false,
            };
            let keys = resolve(&analysis.scopes, 0, 0, &column);
            keys.iter().any(|key| is_anchor(analysis, *key))
        })
    }

    /// The only table that is shown, under its columns' own names.
    fn table_of(&self, analysis: &Analysis<'_>) -> Option<TableName> {
        let (name, from) = self.only_table()?;
        let sharded = matches!(analysis.place(from), Place::Sharded { .. });
        sharded.then_some(name)
    }

    fn table_of_shard(&self, shard: ShardId) -> Option<TableName> {
        let (name, _) = self.only_table()?;
        let listed = self.snapshot.table(&name.schema, &name.name);
        // One that nothing lists is there too.
        let there = listed.is_none_or(|table| table.placement == Placement::Single(shard));
        there.then_some(name)
    }

    fn only_table(&self) -> Option<(TableName, &crate::sql::tree::Name)> {
        let Body::Select(select) = &self.query.body else {
            return None;
        };
        let [From::Table(relation)] = select.from.as_slice() else {
            return None;
        };
        let own = select.targets.iter().all(|target| match &target.value {
            Expr::Column(column) if !column.star => target
                .name
                .as_ref()
                .is_none_or(|name| column.path.last() == Some(name)),
            _ => false,
        });
        let name = TableName {
            schema: relation.name.schema.clone()?,
            name: relation.name.name.clone(),
        };
        own.then_some((name, &relation.name))
    }
}

/// Whether every row holds a row of this relation.
fn is_anchor(analysis: &Analysis<'_>, instance: usize) -> bool {
    let instance = analysis.instances.get(instance);
    instance.is_some_and(|one| one.block == 0 && one.nullable == Nullable::No)
}

/// The group, and the column that shows the key; where none does, a name that no column has.
fn key_of(analysis: &Analysis<'_>, outputs: &Outputs) -> Option<(GroupId, String)> {
    let anchors = || (0..analysis.instances.len()).filter(|at| is_anchor(analysis, *at));
    let first = analysis.instances.get(anchors().next()?)?;
    let shows =
        |(_, key): &&(String, Option<usize>)| key.is_some_and(|key| is_anchor(analysis, key));
    if let Some((name, _)) = outputs.columns.iter().find(shows) {
        return Some((first.group, name.clone()));
    }
    let taken = outputs.open || outputs.columns.iter().any(|(name, _)| *name == first.key);
    let hidden = if taken {
        String::new()
    } else {
        first.key.clone()
    };
    Some((first.group, hidden))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{
        group::{Group, Map},
        key::KeyType,
        snapshot::Table,
    };

    fn table(placement: Placement, columns: &[&str]) -> Table {
        Table {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            ..Table::unasked(placement)
        }
    }

    fn snapshot() -> Snapshot {
        let shards = ["s0", "s1"].map(str::to_owned).to_vec();
        let mut snapshot = Snapshot::new("app", shards);
        let ranges = crate::config::load::load_str(
            "test",
            r#"
            [databases.app]
            shards.s0 = { primary = "postgres://h0/app" }
            shards.s1 = { primary = "postgres://h1/app" }
            [databases.app.groups.g]
            method = "range"
            key_type = "bigint"
            ranges = [{ to = 100, shard = "s0" }, { shard = "s1" }]
            "#,
            std::path::Path::new("."),
        );
        snapshot.groups = ranges.unwrap().databases["app"].snapshot.groups.clone();
        let sharded = |key: &str| Placement::Sharded {
            group: GroupId(0),
            key_column: key.to_owned(),
        };
        for (name, made) in [
            (
                "orders",
                table(sharded("customer_id"), &["id", "customer_id", "total"]),
            ),
            (
                "items",
                table(sharded("customer_id"), &["order_id", "customer_id", "what"]),
            ),
            ("countries", table(Placement::Reference, &["code", "name"])),
            (
                "logs",
                table(Placement::Single(ShardId(1)), &["id", "what"]),
            ),
        ] {
            let name = TableName {
                schema: "public".to_owned(),
                name: name.to_owned(),
            };
            snapshot.tables.insert(name, made);
        }
        assert!(matches!(
            snapshot.groups[0],
            Group {
                key_type: KeyType::Bigint,
                map: Map::Range(_),
                ..
            }
        ));
        snapshot
    }

    fn found(definition: &str) -> String {
        let Some(shown) = shown(definition, &snapshot()) else {
            return "nothing".to_owned();
        };
        let place = match shown.placement {
            Placement::Sharded { key_column, .. } => format!("by {key_column:?}"),
            Placement::Reference => "anywhere".to_owned(),
            Placement::Single(shard) => format!("on {}", shard.0),
        };
        let nature = match shown.nature {
            Nature::View => "",
            Nature::ViewWithCode => ", with code",
            _ => ", one shard",
        };
        let of = shown
            .of
            .map_or_else(String::new, |of| format!(", of {}", of.name));
        format!("{place}{nature}{of}")
    }

    #[test]
    fn a_view_is_where_its_rows_are() {
        let orders = "FROM public.orders";
        for (definition, expected) in [
            (format!("SELECT orders.id, orders.customer_id {orders};"), "by \"customer_id\", of orders"),
            (format!("SELECT orders.customer_id AS who, orders.total {orders} WHERE orders.total > 5"), "by \"who\""),
            (format!("SELECT orders.id, orders.total AS customer_id {orders}"), "by \"\""),
            (format!("SELECT orders.id {orders}"), "by \"customer_id\", of orders"),
            ("SELECT o.customer_id, i.what, c.name FROM public.orders o JOIN public.items i \
              ON i.customer_id = o.customer_id AND i.order_id = o.id LEFT JOIN public.countries c ON c.code = i.what".to_owned(), "by \"customer_id\""),
            ("SELECT i.customer_id, o.customer_id AS who FROM public.orders o LEFT JOIN public.items i \
              ON i.customer_id = o.customer_id".to_owned(), "by \"who\""),
            (format!("SELECT orders.customer_id, count(*) AS n, string_agg(DISTINCT orders.id::text, ','::text) AS ids {orders} \
              GROUP BY orders.customer_id HAVING count(*) > 1"), "by \"customer_id\""),
            (format!("SELECT max(orders.total) AS most {orders} GROUP BY orders.customer_id, orders.id"), "by \"customer_id\""),
            (format!("SELECT orders.id, orders.customer_id {orders} WHERE orders.total > extract(day FROM now())"), "by \"customer_id\", one shard, of orders"),
            (format!("SELECT orders.id, orders.customer_id {orders} ORDER BY orders.id"), "by \"customer_id\", one shard, of orders"),
            (format!("SELECT orders.id {orders} WHERE orders.customer_id = 42"), "on 0"),
            (format!("SELECT count(*) {orders} WHERE orders.customer_id = 342"), "on 1"),
            ("SELECT countries.name FROM public.countries WHERE countries.code > 'a'::text".to_owned(), "anywhere"),
            (format!("SELECT orders.customer_id, public.f(orders.total) AS f {orders}"), "by \"customer_id\", with code"),
            ("SELECT t.oid FROM pg_type t JOIN public.countries ON true".to_owned(), "anywhere, one shard"),
            ("SELECT logs.id, logs.what FROM public.logs".to_owned(), "on 1, of logs"),
            ("SELECT logs.id, count(*) FROM public.logs JOIN public.countries ON true GROUP BY logs.id".to_owned(), "on 1"),
        ] {
            assert_eq!(found(&definition), expected, "{definition}");
        }
    }

    #[test]
    fn of_a_view_that_takes_rows_of_several_shards_together_nothing_is_said() {
        for definition in [
            "SELECT count(*) AS n FROM public.orders",
            "SELECT orders.total, count(*) FROM public.orders GROUP BY orders.total",
            "SELECT max(orders.id) FROM public.orders GROUP BY (orders.customer_id % 7)",
            "SELECT DISTINCT orders.customer_id FROM public.orders",
            "SELECT DISTINCT max(orders.id) FROM public.orders GROUP BY orders.customer_id",
            "SELECT orders.customer_id FROM public.orders LIMIT 3",
            "SELECT orders.customer_id, row_number() OVER (ORDER BY orders.id) FROM public.orders",
            "SELECT orders.customer_id, sum(sum(orders.total)) OVER () FROM public.orders GROUP BY orders.customer_id",
            "SELECT orders.customer_id FROM public.orders UNION SELECT items.customer_id FROM public.items",
            "SELECT o.id, i.what FROM public.orders o JOIN public.items i ON i.order_id = o.id",
            "SELECT i.what FROM public.orders o RIGHT JOIN public.countries i ON i.code = o.id::text",
            "SELECT i.customer_id FROM public.orders o FULL JOIN public.items i ON i.customer_id = o.customer_id",
            "SELECT o.customer_id, ( SELECT count(*) FROM public.items) FROM public.orders o",
            "SELECT o.customer_id FROM public.orders o WHERE NOT EXISTS ( SELECT 1 FROM public.items i WHERE i.order_id = o.id)",
            "SELECT l.id, o.id FROM public.orders o, public.logs l",
            "SELECT nextval('public.s'::regclass) FROM public.orders",
            "SELECT public.f(countries.code) FROM public.countries",
            "SELECT public.f(orders.id) FROM public.orders GROUP BY orders.id",
            "SELECT nothing.id FROM public.nothing",
            "WITH x AS ( SELECT orders.id FROM public.orders) SELECT x.id FROM x",
            "SELECT s.n FROM ( SELECT count(*) AS n FROM public.orders) s",
        ] {
            assert_eq!(found(definition), "nothing", "{definition}");
        }
    }
}
