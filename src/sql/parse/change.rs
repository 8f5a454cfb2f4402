//! Schema changes and maintenance, from the grammar's nodes to [`Change`].

use super::{Lower, Node, NodeList, meanwhile, nodes, raw, relation};
use crate::sql::{
    change::{
        Alter, Block, Change, Children, Column, Emptied, Harm, Holds, Locks, Meanwhile, Mild,
        Modifier, NewTable, Numbers, Others, Reference, Renamed, Unique, What,
    },
    tree::Name,
};

const OTHER: Meanwhile = Meanwhile::Refused(Harm::Else);

impl Lower {
    /// What a utility statement changes; `None`: it is none of these.
    pub(super) fn change(&mut self, node: Node<'_>) -> Option<Change> {
        let of = |command, what| Change {
            command,
            what,
            block: Block::Allowed,
            meanwhile: OTHER,
        };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest is told apart by name"
        )]
        Some(match node {
            Node::CreateStmt(create) => of("CREATE TABLE", self.new_table(create)),
            Node::AlterTableStmt(alter) => Change {
                meanwhile: meanwhile::altered(alter),
                ..of("ALTER TABLE", self.alter_table(alter))
            },
            Node::IndexStmt(index) => self.index(index),
            Node::DropStmt(drop) => dropped(drop),
            Node::TruncateStmt(truncate) => of("TRUNCATE", emptied(truncate)),
            Node::LockStmt(lock) => of("LOCK TABLE", locked(lock)),
            Node::RenameStmt(rename) => of("RENAME", renamed(rename)),
            Node::VacuumStmt(vacuum) => vacuumed(vacuum),
            Node::ReindexStmt(reindex) => reindexed(reindex),
            Node::ClusterStmt(cluster) => Change {
                block: Block::Never,
                ..of(
                    "CLUSTER",
                    cluster
                        .relation()
                        .map_or(What::Everywhere, |table| tables(vec![relation(table).name])),
                )
            },
            other => return self.belonging(&other).or_else(|| everywhere(&other)),
        })
    }

    /// What belongs to one table.
    fn belonging(&mut self, node: &Node<'_>) -> Option<Change> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the rest belongs to no table"
        )]
        let (command, what) = match node {
            Node::CreateTrigStmt(trigger) => {
                let mut names = one(trigger.relation());
                names.extend(one(trigger.constrrel()));
                ("CREATE TRIGGER", tables(names))
            }
            Node::CreatePolicyStmt(policy) => {
                drop(self.expr(policy.qual()));
                drop(self.expr(policy.with_check()));
                ("CREATE POLICY", tables(one(policy.table())))
            }
            Node::AlterPolicyStmt(policy) => {
                drop(self.expr(policy.qual()));
                drop(self.expr(policy.with_check()));
                ("ALTER POLICY", tables(one(policy.table())))
            }
            Node::CreateStatsStmt(statistics) => {
                ("CREATE STATISTICS", tables(ranges(statistics.relations())))
            }
            Node::AlterSeqStmt(sequence) => {
                // Where the table is not, the sequence cannot be its own.
                let owner = super::sequence::owner(sequence);
                let of = owner.map_or_else(|| one(sequence.sequence()), |table| vec![table]);
                ("ALTER SEQUENCE", What::Relations(of))
            }
            Node::CommentStmt(comment) => ("COMMENT", commented(comment)),
            Node::GrantStmt(grant) => ("GRANT or REVOKE", granted(grant)),
            Node::AlterOwnerStmt(owner) => (
                "ALTER … OWNER",
                of_kind(owner.object_type, one(owner.relation())),
            ),
            Node::AlterObjectSchemaStmt(schema) => (
                "ALTER … SET SCHEMA",
                match of_kind(schema.object_type, one(schema.relation())) {
                    What::Tables { names, mut alter } => {
                        let to = schema.newschema().unwrap_or_default();
                        alter.name = Renamed::Schema(to.to_owned());
                        What::Tables { names, alter }
                    }
                    other => other,
                },
            ),
            _ => return None,
        };
        let meanwhile = match node {
            Node::CreateStatsStmt(_) => Meanwhile::Done(Mild::default()),
            _ => OTHER,
        };
        Some(Change {
            command,
            what,
            block: Block::Allowed,
            meanwhile,
        })
    }

    fn new_table(&mut self, create: &nodes::CreateStmt) -> What {
        let mut table = NewTable {
            name: create.relation().map(|table| relation(table).name),
            parents: ranges(create.inh_relations()),
            typed: create.of_typename().is_some(),
            ..NewTable::default()
        };
        for element in create.table_elts() {
            match element {
                Node::ColumnDef(column) => {
                    let column = self.column(column, &mut table.holds);
                    table.columns.push(column);
                }
                Node::TableLikeClause(like) => table.likes.extend(one(like.relation())),
                Node::Constraint(constraint) => {
                    self.constraint(constraint, &[], &mut table.holds);
                }
                _ => return What::Unsupported,
            }
        }
        for constraint in create.constraints() {
            self.constraint(constraint, &[], &mut table.holds);
        }
        What::NewTable(Box::new(table))
    }

    fn column(&mut self, column: &nodes::ColumnDef, holds: &mut Holds) -> Column {
        let name = column.colname().unwrap_or_default().to_owned();
        drop(self.expr(column.raw_default()));
        for constraint in column.constraints() {
            if let Node::Constraint(constraint) = constraint {
                self.constraint(constraint, std::slice::from_ref(&name), holds);
            }
        }
        let of = column.type_name();
        let scalar = of.filter(|of| of.array_bounds().is_empty());
        let last = |of: &nodes::TypeName| {
            of.names()
                .into_iter()
                .next_back()
                .and_then(|name| name.sval())
                .map(str::to_owned)
        };
        Column {
            name,
            type_name: scalar.and_then(last),
            modifier: if of.is_some_and(|of| !of.typmods().is_empty()) {
                Modifier::Some
            } else {
                Modifier::None
            },
        }
    }

    /// `own`: the column that it stands with.
    fn constraint(&mut self, constraint: &nodes::Constraint, own: &[String], holds: &mut Holds) {
        use raw::ConstrType;
        drop(self.expr(constraint.raw_expr()));
        match constraint.contype {
            ConstrType::CONSTR_PRIMARY | ConstrType::CONSTR_UNIQUE => {
                let keys = names(constraint.keys());
                let keys = if keys.is_empty() { own.to_vec() } else { keys };
                // USING INDEX names no columns: none of them is known to be the key.
                holds.uniques.push(Unique {
                    columns: keys.into_iter().map(Some).collect(),
                });
            }
            // What it excludes may be on another shard, unless the key's operator is known to be equality.
            ConstrType::CONSTR_EXCLUSION => holds.uniques.push(Unique {
                columns: Vec::new(),
            }),
            ConstrType::CONSTR_FOREIGN => {
                let columns = names(constraint.fk_attrs());
                holds
                    .references
                    .extend(constraint.pktable().map(|table| Reference {
                        columns: if columns.is_empty() {
                            own.to_vec()
                        } else {
                            columns
                        },
                        table: relation(table).name,
                        referenced: names(constraint.pk_attrs()),
                    }));
            }
            _ => {}
        }
    }

    fn alter_table(&mut self, statement: &nodes::AlterTableStmt) -> What {
        use raw::AlterTableType as Act;
        let mut alter = Alter::default();
        for command in statement.cmds() {
            let Node::AlterTableCmd(command) = command else {
                return What::Unsupported;
            };
            let name = || command.name().unwrap_or_default().to_owned();
            match (command.subtype, command.def()) {
                (Act::AT_AddColumn, Node::ColumnDef(column)) => {
                    let column = self.column(column, &mut alter.holds);
                    alter.added.push(column.name);
                }
                (Act::AT_AddConstraint, Node::Constraint(constraint)) => {
                    self.constraint(constraint, &[], &mut alter.holds);
                }
                (Act::AT_AlterColumnType, def) => {
                    alter.columns.push(name());
                    if let Node::ColumnDef(column) = def {
                        drop(self.expr(column.raw_default()));
                    }
                }
                (Act::AT_DropColumn | Act::AT_SetExpression, _) => alter.columns.push(name()),
                (Act::AT_ColumnDefault, def) => drop(self.expr(def)),
                (Act::AT_AddInherit | Act::AT_DropInherit, Node::RangeVar(parent)) => {
                    alter.ties.push(relation(parent).name);
                }
                (
                    Act::AT_AttachPartition
                    | Act::AT_DetachPartition
                    | Act::AT_DetachPartitionFinalize,
                    Node::PartitionCmd(partition),
                ) => alter.ties.extend(one(partition.name())),
                (Act::AT_AddOf | Act::AT_SetTableSpace, _) => return What::Unsupported,
                _ => {}
            }
        }
        match of_kind(statement.objtype, one(statement.relation())) {
            What::Tables { names, .. } => What::Tables {
                names,
                alter: Box::new(alter),
            },
            other => other,
        }
    }

    fn index(&mut self, index: &nodes::IndexStmt) -> Change {
        let mut alter = Alter::default();
        for column in index.index_params() {
            drop(self.expr(column.expr()));
        }
        drop(self.expr(index.where_clause()));
        if index.unique {
            alter.holds.uniques.push(Unique {
                columns: index
                    .index_params()
                    .into_iter()
                    .map(|column| column.name().map(str::to_owned))
                    .collect(),
            });
        }
        Change {
            command: "CREATE INDEX",
            what: What::Tables {
                names: one(index.relation()),
                alter: Box::new(alter),
            },
            block: block(index.concurrent),
            meanwhile: meanwhile::indexed(index),
        }
    }
}

fn block(alone: bool) -> Block {
    if alone { Block::Never } else { Block::Allowed }
}

fn tables(names: Vec<Name>) -> What {
    What::Tables {
        names,
        alter: Box::default(),
    }
}

fn locked(lock: &nodes::LockStmt) -> What {
    // Numbered from 1 in lockdefs.h.
    const MODES: [&str; 8] = [
        "ACCESS SHARE",
        "ROW SHARE",
        "ROW EXCLUSIVE",
        "SHARE UPDATE EXCLUSIVE",
        "SHARE",
        "SHARE ROW EXCLUSIVE",
        "EXCLUSIVE",
        "ACCESS EXCLUSIVE",
    ];
    let number = usize::try_from(lock.mode).ok();
    let mode = number.and_then(|number| MODES.get(number.checked_sub(1)?));
    let Some(mode) = mode else {
        return What::Unsupported;
    };
    let nowait = if lock.nowait { " NOWAIT" } else { "" };
    What::Locks(Locks {
        tables: with_children(lock.relations()),
        how: format!("IN {mode} MODE{nowait}"),
    })
}

fn emptied(truncate: &nodes::TruncateStmt) -> What {
    What::Emptied(Emptied {
        tables: with_children(truncate.relations()),
        numbers: if truncate.restart_seqs {
            Numbers::BeginAnew
        } else {
            Numbers::GoOn
        },
        others: if truncate.behavior == raw::DropBehavior::DROP_CASCADE {
            Others::Included
        } else {
            Others::Left
        },
    })
}

/// Names of tables in a list of them, and whether those that inherit from them are meant too.
fn with_children<'a>(list: impl IntoIterator<Item = impl Into<Node<'a>>>) -> Vec<(Name, Children)> {
    list.into_iter()
        .filter_map(|node| match node.into() {
            Node::RangeVar(table) => {
                let children = if table.inh {
                    Children::Included
                } else {
                    Children::Left
                };
                Some((relation(table).name, children))
            }
            _ => None,
        })
        .collect()
}

fn one(table: Option<&nodes::RangeVar>) -> Vec<Name> {
    table
        .map(|table| relation(table).name)
        .into_iter()
        .collect()
}

/// Names of tables in a list of them.
fn ranges<'a>(list: impl IntoIterator<Item = impl Into<Node<'a>>>) -> Vec<Name> {
    list.into_iter()
        .filter_map(|node| match node.into() {
            Node::RangeVar(table) => Some(relation(table).name),
            _ => None,
        })
        .collect()
}

fn names(list: &NodeList) -> Vec<String> {
    list.iter()
        .filter_map(|node| node.as_str().map(str::to_owned))
        .collect()
}

/// A name as DROP and COMMENT have it: its parts as a list, of which the last `behind` are not the relation's.
fn dotted(node: Node<'_>, behind: usize) -> Option<Name> {
    let mut parts = match node {
        Node::NodeList(list) => names(list),
        _ => return None,
    };
    parts.truncate(parts.len().saturating_sub(behind));
    let name = parts.pop()?;
    Some(Name {
        schema: parts.pop(),
        name,
    })
}

/// An object of this kind that is named as a relation.
fn of_kind(kind: raw::ObjectType::Type, names: Vec<Name>) -> What {
    use raw::ObjectType as Of;
    match kind {
        Of::OBJECT_TABLE => tables(names),
        Of::OBJECT_INDEX | Of::OBJECT_SEQUENCE | Of::OBJECT_VIEW => What::Relations(names),
        Of::OBJECT_MATVIEW | Of::OBJECT_FOREIGN_TABLE => What::Unsupported,
        _ if is_shared(kind) => What::EveryServer,
        _ if is_unsupported(kind) => What::Unsupported,
        _ => What::Everywhere,
    }
}

/// What all databases of a server have in common.
fn is_shared(kind: raw::ObjectType::Type) -> bool {
    kind == raw::ObjectType::OBJECT_ROLE
}

fn is_unsupported(kind: raw::ObjectType::Type) -> bool {
    use raw::ObjectType as Of;
    matches!(
        kind,
        Of::OBJECT_DATABASE
            | Of::OBJECT_TABLESPACE
            | Of::OBJECT_PUBLICATION
            | Of::OBJECT_SUBSCRIPTION
            | Of::OBJECT_LARGEOBJECT
            | Of::OBJECT_EVENT_TRIGGER
    )
}

fn dropped(drop: &nodes::DropStmt) -> Change {
    use raw::ObjectType as Of;
    let objects = |behind: usize| -> Vec<Name> {
        drop.objects()
            .into_iter()
            .filter_map(|object| dotted(object, behind))
            .collect()
    };
    let what = match drop.remove_type {
        Of::OBJECT_TRIGGER | Of::OBJECT_POLICY | Of::OBJECT_RULE => tables(objects(1)),
        kind @ (Of::OBJECT_TABLE
        | Of::OBJECT_INDEX
        | Of::OBJECT_SEQUENCE
        | Of::OBJECT_VIEW
        | Of::OBJECT_MATVIEW
        | Of::OBJECT_FOREIGN_TABLE) => of_kind(kind, objects(0)),
        kind => of_kind(kind, Vec::new()),
    };
    Change {
        command: "DROP",
        what,
        block: block(drop.concurrent),
        meanwhile: meanwhile::dropped(drop),
    }
}

fn renamed(rename: &nodes::RenameStmt) -> What {
    use raw::ObjectType as Of;
    let names = one(rename.relation());
    match (rename.rename_type, rename.relation_type) {
        (Of::OBJECT_TABLE, _) => What::Tables {
            names,
            alter: Box::new(Alter {
                name: Renamed::Name(rename.newname().unwrap_or_default().to_owned()),
                ..Alter::default()
            }),
        },
        (Of::OBJECT_COLUMN, Of::OBJECT_TABLE) => What::Tables {
            names,
            alter: Box::new(Alter {
                columns: rename.subname().map(str::to_owned).into_iter().collect(),
                added: rename.newname().map(str::to_owned).into_iter().collect(),
                ..Alter::default()
            }),
        },
        (Of::OBJECT_COLUMN, other) => of_kind(other, names),
        (
            Of::OBJECT_TABCONSTRAINT | Of::OBJECT_TRIGGER | Of::OBJECT_POLICY | Of::OBJECT_RULE,
            _,
        ) => tables(names),
        (kind, _) => of_kind(kind, names),
    }
}

fn vacuumed(vacuum: &nodes::VacuumStmt) -> Change {
    let names: Vec<Name> = vacuum
        .rels()
        .into_iter()
        .flat_map(|table| one(table.relation()))
        .collect();
    Change {
        command: "VACUUM or ANALYZE",
        what: if names.is_empty() {
            What::Everywhere
        } else {
            tables(names)
        },
        block: block(vacuum.is_vacuumcmd),
        meanwhile: OTHER,
    }
}

fn reindexed(reindex: &nodes::ReindexStmt) -> Change {
    use raw::ReindexObjectType as Of;
    let concurrent = reindex
        .params()
        .into_iter()
        .any(|option| option.defname() == Some("concurrently"));
    let (what, alone) = match reindex.kind {
        Of::REINDEX_OBJECT_INDEX => (What::Relations(one(reindex.relation())), concurrent),
        Of::REINDEX_OBJECT_TABLE => (tables(one(reindex.relation())), concurrent),
        Of::REINDEX_OBJECT_SCHEMA => (What::Everywhere, true),
        _ => (What::Unsupported, true),
    };
    Change {
        command: "REINDEX",
        what,
        block: block(alone),
        meanwhile: OTHER,
    }
}

fn commented(comment: &nodes::CommentStmt) -> What {
    use raw::ObjectType as Of;
    let at = |behind| dotted(comment.object(), behind).into_iter().collect();
    match comment.objtype {
        Of::OBJECT_COLUMN => What::Relations(at(1)),
        Of::OBJECT_TABCONSTRAINT | Of::OBJECT_TRIGGER | Of::OBJECT_POLICY | Of::OBJECT_RULE => {
            tables(at(1))
        }
        kind => of_kind(kind, at(0)),
    }
}

fn granted(grant: &nodes::GrantStmt) -> What {
    use raw::{GrantTargetType, ObjectType as Of};
    if grant.targtype != GrantTargetType::ACL_TARGET_OBJECT {
        return What::Everywhere;
    }
    match grant.objtype {
        Of::OBJECT_TABLE | Of::OBJECT_SEQUENCE => What::Relations(ranges(grant.objects())),
        kind if is_unsupported(kind) => What::Unsupported,
        _ => What::Everywhere,
    }
}

/// What is made or changed alike on every shard.
fn everywhere(node: &Node<'_>) -> Option<Change> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest stays refused")]
    let (command, what) = match node {
        Node::GrantRoleStmt(_) => ("GRANT or REVOKE", What::EveryServer),
        Node::CreateRoleStmt(_) => ("CREATE ROLE", What::EveryServer),
        Node::AlterRoleStmt(_) | Node::AlterRoleSetStmt(_) => ("ALTER ROLE", What::EveryServer),
        Node::DropRoleStmt(_) => ("DROP ROLE", What::EveryServer),
        Node::CreateSchemaStmt(create) if create.schema_elts().is_empty() => {
            ("CREATE SCHEMA", What::Everywhere)
        }
        Node::CreateExtensionStmt(_) => ("CREATE EXTENSION", What::Everywhere),
        Node::AlterExtensionStmt(_) | Node::AlterExtensionContentsStmt(_) => {
            ("ALTER EXTENSION", What::Everywhere)
        }
        Node::CreateFunctionStmt(_) => ("CREATE FUNCTION", What::Everywhere),
        Node::AlterFunctionStmt(_) => ("ALTER FUNCTION", What::Everywhere),
        Node::DefineStmt(_) => ("CREATE TYPE", What::Everywhere),
        Node::CompositeTypeStmt(_)
        | Node::CreateEnumStmt(_)
        | Node::CreateRangeStmt(_)
        | Node::AlterEnumStmt(_)
        | Node::AlterTypeStmt(_) => ("CREATE or ALTER TYPE", What::Everywhere),
        Node::CreateDomainStmt(_) | Node::AlterDomainStmt(_) => {
            ("CREATE or ALTER DOMAIN", What::Everywhere)
        }
        Node::CreateCastStmt(_) => ("CREATE CAST", What::Everywhere),
        Node::CreateSeqStmt(_) => ("CREATE SEQUENCE", What::Everywhere),
        Node::ViewStmt(create) => {
            let view = create.view().map(|view| relation(view).name);
            ("CREATE VIEW", view.map_or(What::Unsupported, What::NewView))
        }
        Node::AlterDefaultPrivilegesStmt(_) => ("ALTER DEFAULT PRIVILEGES", What::Everywhere),
        Node::DropOwnedStmt(_) => ("DROP OWNED", What::Everywhere),
        Node::ReassignOwnedStmt(_) => ("REASSIGN OWNED", What::Everywhere),
        _ => return None,
    };
    Some(Change {
        command,
        what,
        block: Block::Allowed,
        meanwhile: OTHER,
    })
}
