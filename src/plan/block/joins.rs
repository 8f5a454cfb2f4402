//! Joins: which side a condition restricts, and which keys are equal in the rows that matter.
//!
//! ON and USING restrict only the side that the join does not preserve.

use super::Analysis;
use crate::{
    plan::scope::{EntryKind, Nullable, Outputs, Side},
    sql::tree::{Join, JoinKind},
};
use std::ops::Range;

impl<'a> Analysis<'a> {
    pub(super) fn join(&mut self, join: &Join, scope: usize, nullable: Nullable) {
        let side = |outer: bool| if outer { Nullable::Yes } else { nullable };
        let (entries, instances) = (self.scopes[scope].entries.len(), self.instances.len());
        self.item(
            &join.left,
            scope,
            side(matches!(join.kind, JoinKind::Right | JoinKind::Full)),
        );
        let (middle, between) = (self.scopes[scope].entries.len(), self.instances.len());
        self.item(
            &join.right,
            scope,
            side(matches!(join.kind, JoinKind::Left | JoinKind::Full)),
        );
        let end = self.instances.len();
        let range = match join.kind {
            JoinKind::Inner => instances..end,
            JoinKind::Left => between..end,
            JoinKind::Right => instances..between,
            JoinKind::Full => 0..0,
        };
        let using = if join.natural {
            self.natural(scope, entries, middle)
        } else {
            join.using.clone()
        };
        for name in &using {
            let (left, right) = self.scopes[scope].merge(entries, middle, name, join.kind);
            self.equate(&left, &right, scope, &range);
        }
        if let Some(name) = &join.using_alias {
            self.enter(scope, name, Outputs::unknown(), EntryKind::Using);
        }
        if let Some(on) = &join.on {
            self.restrict(on, scope, entries, &range);
            self.walk(on, scope);
        }
        if let Some(alias) = &join.alias {
            let mut outputs = Outputs {
                columns: Vec::new(),
                open: true,
            };
            for entry in &mut self.scopes[scope].entries[entries..] {
                outputs.columns.append(&mut entry.outputs.columns);
                entry.kind = EntryKind::Hidden;
            }
            self.scopes[scope].hide_merged(entries);
            self.enter(
                scope,
                &alias.name,
                outputs.renamed(&alias.columns),
                EntryKind::Derived,
            );
        }
    }

    /// The columns that a NATURAL join compares, when both sides are known.
    fn natural(&mut self, scope: usize, start: usize, middle: usize) -> Vec<String> {
        let scope = &mut self.scopes[scope];
        let (left, right) = scope.entries[start..].split_at(middle - start);
        if scope.entries[start..]
            .iter()
            .any(|entry| entry.outputs.open && entry.kind != EntryKind::Using)
        {
            scope.unsure = true;
            return Vec::new();
        }
        let names = right
            .iter()
            .flat_map(|entry| &entry.outputs.columns)
            .map(|(name, _)| name);
        let shared = names.filter(|name| {
            left.iter().any(|entry| {
                entry
                    .outputs
                    .columns
                    .iter()
                    .any(|(column, _)| column == *name)
            })
        });
        shared.cloned().collect()
    }

    /// `left` and `right` have equal keys in the rows of those in `range` that can matter.
    pub(super) fn equate(&mut self, left: &Side, right: &Side, scope: usize, range: &Range<usize>) {
        for (ones, others) in [(&left.keys, &right.sure), (&right.keys, &left.sure)] {
            for one in ones {
                for other in others {
                    self.equate_one(*one, *other, scope, range);
                }
            }
        }
    }

    pub(super) fn equate_one(
        &mut self,
        one: usize,
        other: usize,
        scope: usize,
        range: &Range<usize>,
    ) {
        let same = self.instances[one].group == self.instances[other].group;
        if one != other && same && range.contains(&one) && self.instances[one].block == scope {
            self.instances[one].equals.push(other);
        }
    }
}
