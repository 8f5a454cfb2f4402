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
    /// And whether a shard has a copy of the latest: this one.
    Behind(Standing, Option<(i64, Content)>),
}

const SEEN: &str = "SELECT coalesce(max(epoch), 0) FROM shardway.activation";
const KEEP: &str = "\
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
        let others = shards.filter(|shard| *shard != self.home);
        let asking = others.map(|shard| self.copy_of(shard, epoch, content, by));
        let copies = at_once(asking.collect()).await;
        judge(epoch, content, copies.into_iter().flatten().flatten())
    }

    /// Gives every other shard a copy of the map as the home shard has it now: before anything is done that only a later
    /// map allows.
    ///
    /// # Errors
    /// The first shard's, and the others have been asked all the same.
    pub async fn copy_map(&self, by: u64) -> Result<i64, super::Unflipped> {
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
        by: u64,
    ) -> Result<Option<Copy>, AskError> {
        let lease = self.lease(shard).await?;
        let copy = errand(async {
            let kept = map::read(&lease).await?;
            let seen: i64 = lease.query_one(SEEN, &[]).await?.try_get(0)?;
            if kept.as_ref().is_none_or(|(kept, _)| *kept < epoch) {
                let by = format!("{by:016x}");
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
    let mut latest: Option<Copy> = None;
    for copy in copies {
        let differs = copy.epoch == epoch && copy.content.as_ref().is_some_and(|it| it != content);
        if copy.epoch < epoch || (copy.epoch == epoch && !differs) {
            continue;
        }
        latest = match latest {
            Some(other) if other.epoch > copy.epoch => Some(other),
            Some(other) if other.epoch == copy.epoch => Some(agreed(other, copy)),
            Some(_) | None => Some(copy),
        };
    }
    let Some(latest) = latest else {
        return Compared::Latest;
    };
    let standing = Standing::Behind {
        shard: Some(latest.shard),
        seen: latest.epoch,
        kept: epoch,
    };
    let copy = latest.content.filter(|_| latest.epoch > epoch);
    Compared::Behind(standing, copy.map(|content| (latest.epoch, content)))
}

/// Of two copies of one number.
fn agreed(one: Copy, other: Copy) -> Copy {
    let content = match (one.content, other.content) {
        (Some(one), Some(other)) => (one == other).then_some(one),
        // Who owns by a later map, and has no copy, contradicts nothing.
        (one, other) => one.or(other),
    };
    Copy {
        shard: one.shard,
        epoch: one.epoch,
        content,
    }
}
