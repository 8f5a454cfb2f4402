//! The map of the keys' owners that all proxies of one logical database agree on, on its home shard.
//!
//! What must stay true: it is changed by compare-and-swap of its number alone, and every change is announced as a schema
//! change is; a proxy adds to it what contradicts nothing, and never changes an owner.

use super::Lease;
use crate::{
    catalog::{
        group::GroupId,
        moving::Doubled,
        ownership::{Content, Declared, Disagreement},
        shard::ShardId,
        snapshot::{Epoch, Snapshot},
    },
    inspect::AskError,
};
use std::sync::Arc;

const READ: &str = "SELECT epoch, content::text FROM shardway.map";
const WRITE: &str = "\
INSERT INTO shardway.map (epoch, content, made_by) VALUES (1, $1::text::jsonb, $2) ON CONFLICT DO NOTHING";
const SWAP: &str = "\
WITH made AS (UPDATE shardway.map SET epoch = epoch + 1, content = $1::text::jsonb, made_at = now(), made_by = $2 \
              WHERE epoch = $3 RETURNING epoch), \
     told AS (UPDATE shardway.epoch SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM made) RETURNING epoch) \
SELECT made.epoch, pg_notify('shardway', told.epoch::text) FROM made, told";
/// Others may have been at it in between.
const TRIES: usize = 8;

/// The map as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub epoch: i64,
    pub content: Arc<Content>,
    /// Groups of which the configuration says something else.
    pub disagreements: Vec<Disagreement>,
    /// Shards that it names and the configuration does not have.
    pub lacking: Vec<String>,
}

impl Kept {
    /// What a configuration says of a map.
    pub(super) fn judged(epoch: i64, content: Arc<Content>, here: &Declared) -> Self {
        Self {
            epoch,
            disagreements: content.disagreements(here),
            lacking: content.lacking(here),
            content,
        }
    }

    /// Puts who owns which keys in the place of what the configuration says of it. Groups of which it says something else are
    /// barred.
    pub fn put_on(&self, snapshot: &mut Snapshot) {
        let names = snapshot.shards.clone();
        let find = |name: &str| {
            let at = names.iter().position(|shard| shard == name)?;
            u16::try_from(at).ok().map(ShardId)
        };
        let content = &self.content;
        snapshot.epoch = Epoch(u64::try_from(self.epoch).unwrap_or_default());
        snapshot.members = content.members.iter().filter_map(|it| find(it)).collect();
        let mut moved = Vec::new();
        for (group, at) in snapshot.groups.iter_mut().zip(0_u16..) {
            let differs = self.disagreements.iter().any(|it| it.group == group.name);
            match content.owners.map_of(&group.name, find) {
                Ok(Some((map, pins))) if !differs => {
                    if group.map != map || group.pins != pins {
                        moved.push(GroupId(at));
                    }
                    group.map = map;
                    group.pins = pins;
                    let moving = content.moving.iter().filter(|it| it.group == group.name);
                    let doubled = moving.filter_map(|it| {
                        let (shard, keys) = (find(&it.shard)?, it.keys.clone());
                        Some(Doubled { shard, keys })
                    });
                    group.doubled = doubled.collect();
                }
                // A shard that is not known is said of the whole map.
                Ok(_) | Err(_) => snapshot.barred.push(GroupId(at)),
            }
        }
        snapshot.forget_views_over(&moved);
    }
}

/// Compares what the configuration says with the map, and adds to it what is new.
pub(super) async fn compare(lease: &Lease, here: &Declared, by: u64) -> Result<Kept, AskError> {
    let by = format!("{by:016x}");
    for _ in 0..TRIES {
        let Some((epoch, kept)) = read(lease).await? else {
            let first = Content::first(here);
            lease.execute(WRITE, &[&text(&first), &by]).await?;
            continue;
        };
        let both = kept.clone().and(here);
        if both == kept {
            return Ok(Kept::judged(epoch, Arc::new(kept), here));
        }
        lease.query(SWAP, &[&text(&both), &by, &epoch]).await?;
    }
    Err(AskError::Timeout)
}

/// The map and its number, if there is one.
pub(super) async fn read(lease: &Lease) -> Result<Option<(i64, Content)>, AskError> {
    let Some(row) = lease.query_typed_opt(READ, &[]).await? else {
        return Ok(None);
    };
    let content: String = row.try_get(1)?;
    Ok(Some((row.try_get(0)?, parsed(&content)?)))
}

/// The content of a map.
pub(super) fn parsed(content: &str) -> Result<Content, AskError> {
    let content = serde_json::from_str(content);
    content.map_err(|error| AskError::Unreadable(format!("shardway.map cannot be read: {error}")))
}

/// What makes the map say this; only if it has not changed meanwhile.
pub(super) fn accept(epoch: i64, accepted: &Content) -> String {
    let content = text(accepted).replace('\'', "''");
    format!(
        "WITH made AS (UPDATE shardway.map SET epoch = epoch + 1, content = '{content}'::jsonb, made_at = now(), \
         made_by = session_user WHERE epoch = {epoch} RETURNING epoch), \
         told AS (UPDATE shardway.epoch SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM made) RETURNING epoch) \
         SELECT made.epoch, pg_notify('shardway', told.epoch::text) FROM made, told;"
    )
}

/// A map's content as it is stored.
pub(super) fn text(map: &Content) -> String {
    // It has nothing that JSON cannot hold.
    serde_json::to_string(map).unwrap_or_default()
}
