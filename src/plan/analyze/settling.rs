//! Where a statement runs: one shard for all that is fixed, then the keys.
//!
//! An override lifts what its user answers for and nothing else; what contradicts is refused.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{Planner, calls::Calls};
use crate::{
    catalog::{
        group::GroupId,
        shard::ShardId,
        snapshot::{Standing, TableName},
    },
    plan::{
        Footing, Override, Route, Target,
        block::{Analysis, Barred},
        route::{Fixed, Pin, Pins, Why},
        touch::Touches,
        unroutable::{Undoubled, Unroutable},
    },
    sql::tree::{Depth, Kind, SettingCalls},
};

impl<'a> Planner<'a> {
    /// What only an override of the shard lets run.
    pub(super) fn one_shard_only(&self, why: Unroutable) -> Target {
        match self.pinned {
            Some(Override::Shard(name)) => match self.snapshot.shard_named(name) {
                Some(shard) => Target::Fixed(Route::One(shard)),
                None => Target::Refused(Box::new(Unroutable::OverrideShard {
                    shard: name.clone(),
                })),
            },
            _ => Target::Refused(Box::new(why)),
        }
    }

    pub(super) fn contradicts(&self, shard: ShardId) -> Target {
        let named = match self.pinned {
            Some(Override::Shard(name) | Override::Key(name)) => name.clone(),
            None => String::new(),
        };
        let keys = self
            .snapshot
            .shards
            .get(shard.index())
            .cloned()
            .unwrap_or_default();
        Target::Refused(Box::new(Unroutable::OverrideContradicts { named, keys }))
    }

    /// Its place rests on what the analysis has come upon.
    pub(super) fn rests_on(&self, analysis: &Analysis<'_>) {
        self.footing
            .set(self.footing.get().max(analysis.footing.get()));
        let barred = self.barred.get();
        self.barred.set(barred.or_else(|| analysis.barred.get()));
        let touches = self.touches.get().and(analysis.touches.get());
        self.touches.set(touches);
    }

    /// Whose rows it may touch: where an override lets code or commands run that were not looked into, anybody's.
    pub(super) fn touches(&self, kind: &Kind) -> Touches {
        if self.pinned.is_none() || self.snapshot.is_single() {
            return self.touches.get();
        }
        match kind {
            Kind::Query(_)
            | Kind::Insert(_)
            | Kind::Update(_)
            | Kind::Delete(_)
            | Kind::Merge(_)
            | Kind::Explain { .. }
            | Kind::Declare { .. }
            | Kind::Copy(_) => {
                let calls = self.calls();
                let hidden = calls.one_shard.or(calls.runs_sql).or(calls.unknown);
                if hidden.is_some() {
                    Touches::EVERYTHING
                } else {
                    self.touches.get()
                }
            }
            Kind::Call(_)
            | Kind::Utility(_)
            | Kind::Change(_)
            | Kind::CreateTemporary
            | Kind::TableOfExecute { .. } => Touches::EVERYTHING,
            _ => self.touches.get(),
        }
    }

    /// Why none of it is served; `changes`: it changes the schema of several shards.
    pub(super) fn barred(&self, changes: bool) -> Option<Unroutable> {
        let barred = match (self.barred.get(), &self.snapshot.standing) {
            (None | Some(Barred::Unknown), Standing::Known) => None,
            (Some(Barred::Group(group)), _) => Some(Unroutable::MapDiffers {
                group: self.snapshot.group(group).name.clone(),
            }),
            (Some(Barred::Unknown), standing) => Some(Unroutable::MapUnknown(standing.clone())),
            (None, standing) => changes.then(|| Unroutable::MapUnknown(standing.clone())),
        };
        let said = matches!(self.pinned, Some(Override::Shard(_)));
        barred.filter(|_| !said)
    }

    pub(super) fn footing(&self) -> Footing {
        match self.pinned {
            // Who says so answers for it.
            Some(Override::Shard(_)) => Footing::Sure,
            _ if self.snapshot.is_single() => Footing::Sure,
            Some(Override::Key(_)) | None => self.footing.get(),
        }
    }

    pub(super) fn target(
        &self,
        mut analysis: Analysis<'_>,
        pins: Vec<Pin>,
        calls: &Calls,
    ) -> Target {
        match self.statement.depth {
            Depth::Whole => {}
            Depth::TooDeep => analysis.refusals.insert(0, Unroutable::TooDeep),
            Depth::Unknown => analysis.refusals.insert(0, Unroutable::NotUnderstood),
        }
        if let Some(name) = calls.runs_sql.clone() {
            analysis.refuse(Unroutable::Function { name });
        }
        let placed = !pins.is_empty() || !analysis.fixed.is_empty();
        for (uses, why) in [
            (calls.home.is_some(), Why::Home),
            (calls.large_objects, Why::LargeObjects),
        ] {
            if uses {
                let shard = self.snapshot.home;
                analysis.fixed.push(Fixed { shard, why });
            }
        }
        if let (false, Some(name)) = (
            placed,
            calls.one_shard.clone().or_else(|| calls.unknown.clone()),
        ) {
            analysis.refuse(Unroutable::Function { name });
        }
        // Each shard has its own numbers; those of a table on one shard are that shard's.
        if let (false, Some(name)) = (pins.is_empty(), &calls.one_shard)
            && name == "setval"
        {
            analysis.refuse(Unroutable::Function { name: name.clone() });
        }
        if self.draws() && (!pins.is_empty() || analysis.fixed.is_empty()) {
            match self.home_of_numbers().filter(|_| !placed) {
                Some(fixed) => analysis.fixed.push(fixed),
                None => analysis.refuse(Unroutable::Function {
                    name: "nextval".to_owned(),
                }),
            }
        }
        if let Some(name) = calls
            .leaves
            .clone()
            .filter(|name| self.snapshot.code.is_known_to_leave(&name.to_lowercase()))
        {
            analysis.refuse(Unroutable::Function { name });
        }
        if self.statement.settings != SettingCalls::None {
            analysis.refuse(Unroutable::Function {
                name: "set_config".to_owned(),
            });
        }
        let fixed = match self.overridden(analysis.groups(&pins)) {
            Ok(fixed) => fixed,
            Err(why) => return Target::Refused(Box::new(why)),
        };
        if let Some(why) = self.refusal(&analysis.refusals, fixed.as_ref()) {
            return Target::Refused(Box::new(why));
        }
        if let Some(why) = self.sees_doubled(&analysis, fixed.as_ref()) {
            return Target::Refused(Box::new(why));
        }
        let needed = fixed.into_iter().chain(analysis.fixed).collect();
        self.settle(needed, pins)
    }

    /// Whether it would see rows that the shard of an overriding key has without owning them.
    fn sees_doubled(&self, analysis: &Analysis<'_>, fixed: Option<&Fixed>) -> Option<Unroutable> {
        let by_key = matches!(self.pinned, Some(Override::Key(_)));
        let shard = fixed.filter(|_| by_key)?.shard;
        let groups = analysis.unrestricted.iter();
        let mut groups = groups.map(|group| self.snapshot.group(*group));
        let group = groups.find(|group| group.doubled_on(shard).is_some())?;
        Some(Unroutable::Doubled {
            group: group.name.clone(),
            what: Undoubled::KeyOverride,
        })
    }

    /// Whether it draws from a sequence in its own words.
    pub(super) fn draws(&self) -> bool {
        let mut functions = self.statement.functions.iter();
        functions.any(|function| {
            let own = function
                .schema
                .as_deref()
                .is_none_or(|schema| schema == "pg_catalog");
            own && function.name == "nextval"
        })
    }

    /// The shard whose sequences count for all: the home shard, but for those of a table on another. `None`: not known.
    fn home_of_numbers(&self) -> Option<Fixed> {
        let home = self.snapshot.home;
        let known = &self.snapshot.sequences;
        let fixed = |shard, why| Some(Fixed { shard, why });
        if known.values().all(|shard| *shard == home) {
            return fixed(home, Why::Home);
        }
        let mut found: Option<ShardId> = None;
        for written in crate::plan::defaults::sequences(self.own_text(), &self.own_slots())? {
            let shard = self.shard_of_sequence(&written)?;
            if found.replace(shard).is_some_and(|other| other != shard) {
                return None;
            }
        }
        fixed(found.unwrap_or(home), Why::Home)
    }

    /// Where a sequence counts that is written so; `None`: names that need quotation marks are not read.
    fn shard_of_sequence(&self, written: &str) -> Option<ShardId> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
        let folded = written.to_ascii_lowercase();
        if !written.bytes().all(plain) {
            return None;
        }
        let (schema, name) = match folded.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, folded.as_str()),
        };
        let of = |schema: &str| {
            let (schema, name) = (schema.to_owned(), name.to_owned());
            let name = TableName { schema, name };
            self.snapshot.sequences.get(&name).copied()
        };
        let found = match schema {
            Some(schema) => of(schema),
            None => self
                .context
                .search_path
                .iter()
                .find_map(|schema| of(schema)),
        };
        Some(found.unwrap_or(self.snapshot.home))
    }

    /// What stands, though a shard or key was named.
    fn refusal(&self, refusals: &[Unroutable], fixed: Option<&Fixed>) -> Option<Unroutable> {
        let by_key = matches!(self.pinned, Some(Override::Key(_)));
        let stands = |why: &&Unroutable| match fixed {
            None => true,
            Some(_)
                if by_key
                    && matches!(
                        why,
                        Unroutable::ReferenceWrite { .. }
                            | Unroutable::UnknownTable { .. }
                            | Unroutable::Doubled { .. }
                    ) =>
            {
                true
            }
            Some(_) => !why.lifted_by_override(),
        };
        refusals.iter().find(stands).cloned()
    }

    /// The shard that an override names; `Err` when it names none.
    fn overridden(&self, groups: Vec<GroupId>) -> Result<Option<Fixed>, Unroutable> {
        let (shard, named) = match self.pinned {
            None => return Ok(None),
            Some(Override::Shard(name)) => {
                let shard = self.snapshot.shard_named(name);
                (
                    shard.ok_or_else(|| Unroutable::OverrideShard {
                        shard: name.clone(),
                    })?,
                    name,
                )
            }
            Some(Override::Key(key)) => {
                let Some(group) = self.group_meant(groups) else {
                    return Ok(None);
                };
                let unusable = || Unroutable::OverrideKey { key: key.clone() };
                let group = self.snapshot.group(group.ok_or_else(unusable)?);
                let value = group
                    .key_type
                    .from_text(key.as_bytes())
                    .ok()
                    .ok_or_else(unusable)?;
                let shard = group.shard_of(&value);
                (
                    shard.ok_or_else(|| Unroutable::NoShardForKey {
                        group: group.name.clone(),
                    })?,
                    key,
                )
            }
        };
        Ok(Some(Fixed {
            shard,
            why: Why::Override(named.clone()),
        }))
    }

    /// The group that an overriding key belongs to: the statement's only one, or the database's.
    /// Outer `None`: the statement touches no group.
    fn group_meant(&self, mut groups: Vec<GroupId>) -> Option<Option<GroupId>> {
        groups.sort_unstable();
        groups.dedup();
        match (groups.as_slice(), self.snapshot.groups.len()) {
            ([group], _) => Some(Some(*group)),
            ([], 1) => Some(Some(GroupId(0))),
            ([], _) => None,
            _ => Some(None),
        }
    }

    /// One shard for all that is fixed, then the keys.
    fn settle(&self, needed: Vec<Fixed>, pins: Vec<Pin>) -> Target {
        let mut fixed: Option<Fixed> = None;
        for need in needed {
            match &fixed {
                Some(found) if found.shard != need.shard => {
                    if matches!(found.why, Why::Override(_)) {
                        let named = matches!(self.pinned, Some(Override::Shard(_)));
                        if named && need.why == Why::LargeObjects {
                            continue;
                        }
                        return self.contradicts(need.shard);
                    }
                    let name = |shard: ShardId| {
                        self.snapshot
                            .shards
                            .get(shard.index())
                            .cloned()
                            .unwrap_or_default()
                    };
                    let shards = vec![name(found.shard), name(need.shard)];
                    return Target::Refused(Box::new(Unroutable::SeveralShards { shards }));
                }
                Some(_) => {}
                None => fixed = Some(need),
            }
        }
        if pins.is_empty() {
            return Target::Fixed(match fixed {
                None => Route::Any,
                Some(Fixed {
                    why: Why::Home | Why::LargeObjects,
                    ..
                }) => Route::Home,
                Some(fixed) => Route::One(fixed.shard),
            });
        }
        Target::ByKey(Pins {
            pins: pins.into(),
            fixed,
            reading: self.reading(),
        })
    }
}
