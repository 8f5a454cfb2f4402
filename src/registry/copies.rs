//! Every shard's own copy of the map, by which a home shard is found that has lost what it had committed.
//!
//! What must stay true: a copy never gets an older map in its place; the home shard is given a later one where a shard has
//! a copy of it, and never an older one; of two maps of one number neither is chosen.

use super::{Registry, errand, map};
use crate::{
    catalog::{ownership::Content, shard::ShardId, snapshot::Standing},
    inspect::{AskError, at_once},
};

/// What a shard has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    shard: String,
    epoch: i64,
    /// `None`: it owns what a later map gave it, and has no copy of that.
    content: Option<Content>,
}

/// What the home shard's map is among the copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    Latest,
    Behind(Seen),
}

/// A later map than the home shard's, or another one of its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    shard: String,
    pub(super) epoch: i64,
    /// What the home shard is to be given.
    pub(super) content: Option<Content>,
}

impl Seen {
    pub(super) fn standing(&self, kept: i64) -> Standing {
        Standing::Behind {
            shard: Some(self.shard.clone()),
            seen: self.epoch,
            kept,
        }
    }
}

const SEEN: &str = "SELECT coalesce(max(epoch), 0) FROM shardway.activation";
/// A shard's own copy of the map: its number, content, and who writes it.
pub(crate) const KEEP: &str = "\
INSERT INTO shardway.map AS kept (epoch, content, made_by) VALUES ($1, $2::text::jsonb, $3) \
ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, content = excluded.content, made_at = now(), \
made_by = excluded.made_by WHERE kept.epoch < excluded.epoch";
const ADOPT: &str = "\
WITH made AS (UPDATE shardway.map SET epoch = $1, content = $2::text::jsonb, made_at = now(), made_by = $3 \
              WHERE epoch < $1 RETURNING epoch), \
     told AS (UPDATE shardway.epoch SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM made) RETURNING epoch) \
SELECT made.epoch, pg_notify('shardway', told.epoch::text) FROM made, told";

impl Registry {
    /// Compares the home shard's map with the copies of these shards, which keep it if theirs is older.
    pub(super) async fn compare_copies(
        &self,
        shards: impl Iterator<Item = ShardId>,
        epoch: i64,
        content: &Content,
        by: u64,
    ) -> Compared {
        let by = format!("{by:016x}");
        let others = shards.filter(|shard| *shard != self.home);
        let asking = others.map(|shard| self.copy_of(shard, epoch, content, &by));
        let copies = at_once(asking.collect()).await;
        judge(epoch, content, copies.into_iter().flatten().flatten())
    }

    /// Gives every other shard a copy of the map as the home shard has it now: before anything is done that only a later
    /// map allows.
    ///
    /// # Errors
    /// The first shard's, and the others have been asked all the same.
    pub async fn copy_map(&self, by: &str) -> Result<i64, super::Unflipped> {
        let now = self.read_map().await?;
        let others = self.shards().filter(|shard| *shard != self.home);
        let asking = others.map(|shard| self.copy_of(shard, now.epoch, &now.content, by));
        for asked in at_once(asking.collect()).await {
            asked?;
        }
        Ok(now.epoch)
    }

    /// What a shard has seen; it keeps this map if that is older.
    async fn copy_of(
        &self,
        shard: ShardId,
        epoch: i64,
        content: &Content,
        by: &str,
    ) -> Result<Option<Copy>, AskError> {
        let lease = self.lease(shard).await?;
        let copy = errand(async {
            let kept = map::read(&lease).await?;
            let seen: i64 = lease.query_one(SEEN, &[]).await?.try_get(0)?;
            if kept.as_ref().is_none_or(|(kept, _)| *kept < epoch) {
                lease
                    .execute(KEEP, &[&epoch, &map::text(content), &by])
                    .await?;
            }
            Ok((kept, seen))
        });
        let (kept, seen) = copy.await?;
        lease.done();
        let shard = self.name(shard).to_owned();
        Ok(match kept {
            Some((kept, _)) if kept < seen => Some(Copy {
                shard,
                epoch: seen,
                content: None,
            }),
            Some((epoch, content)) => Some(Copy {
                shard,
                epoch,
                content: Some(content),
            }),
            None if seen > 0 => Some(Copy {
                shard,
                epoch: seen,
                content: None,
            }),
            None => None,
        })
    }

    /// Gives the home shard a later map, unless it has one.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn adopt(
        &self,
        epoch: i64,
        content: &Content,
        by: u64,
    ) -> Result<(), AskError> {
        let lease = self.lease(self.home).await?;
        let by = format!("{by:016x}");
        errand(async {
            lease
                .query(ADOPT, &[&epoch, &map::text(content), &by])
                .await?;
            Ok(())
        })
        .await?;
        lease.done();
        Ok(())
    }
}

fn judge(epoch: i64, content: &Content, copies: impl Iterator<Item = Copy>) -> Compared {
    let differs = |copy: &Copy| copy.content.as_ref().is_some_and(|it| it != content);
    let copies = copies.filter(|it| it.epoch > epoch || (it.epoch == epoch && differs(it)));
    let copies: Vec<Copy> = copies.collect();
    let Some(latest) = copies.iter().max_by_key(|it| it.epoch) else {
        return Compared::Latest;
    };
    let same = copies.iter().filter(|it| it.epoch == latest.epoch);
    let mut contents = same.filter_map(|it| it.content.as_ref());
    let first = contents.next();
    let agreed = contents.all(|it| Some(it) == first) && latest.epoch > epoch;
    Compared::Behind(Seen {
        shard: latest.shard.clone(),
        epoch: latest.epoch,
        content: first.filter(|_| agreed).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn content(member: &str) -> Content {
        Content {
            declared: Default::default(),
            owners: Default::default(),
            members: BTreeSet::from([member.to_owned()]),
            moving: Vec::new(),
        }
    }

    fn copy(epoch: i64, member: Option<&str>) -> Copy {
        Copy {
            shard: "s1".to_owned(),
            epoch,
            content: member.map(content),
        }
    }

    #[test]
    fn the_latest_map_is_taken_only_where_all_copies_of_it_agree() {
        let judged = |copies: Vec<Copy>| match judge(5, &content("a"), copies.into_iter()) {
            Compared::Latest => None,
            Compared::Behind(seen) => Some((seen.epoch, seen.content)),
        };
        assert_eq!(judged(vec![]), None);
        assert_eq!(judged(vec![copy(4, Some("b")), copy(5, Some("a"))]), None);
        assert_eq!(
            judged(vec![copy(5, None)]),
            None,
            "it was given what this map says"
        );
        assert_eq!(judged(vec![copy(5, Some("b"))]), Some((5, None)));
        let later = || copy(7, Some("b"));
        assert_eq!(
            judged(vec![copy(6, Some("c")), later()]),
            Some((7, Some(content("b"))))
        );
        assert_eq!(
            judged(vec![later(), copy(7, None)]),
            Some((7, Some(content("b"))))
        );
        assert_eq!(judged(vec![copy(8, None), later()]), Some((8, None)));
        let other = copy(7, Some("c"));
        assert_eq!(judged(vec![later(), other, later()]), Some((7, None)));
    }
}
