//! Rings of waits over shards: transactions that wait for each other, each on another shard, so that no server sees more
//! than a part of the ring. Pure: who waits for whom goes in, who must end comes out.
//!
//! ```text
//!   shard s0   process 11 ──waits for──▶ process 12           12 and 21 are one transaction, 11 and 22 another:
//!   shard s1   process 21 ──waits for──▶ process 22           neither goes on before the other has
//! ```
//! What must stay true: whoever ends is on a ring that is there, and at least one process of the ring waits on another
//! shard than the others; from the same waits every proxy finds the same, in whatever order it heard of them. The youngest
//! of a ring ends, so that who is repeated often enough comes through.

use crate::catalog::shard::ShardId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A transaction over several shards, by age: of two the greater is younger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId {
    /// When it began, in microseconds of the home shard's clock.
    pub begun: i64,
    /// Whose it is.
    pub owner: u64,
    /// Among those of its owner.
    pub number: u64,
}

/// A transaction over several shards that waits on one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub parts: Vec<Part>,
    /// What its prepared parts are called, once it is being committed.
    pub name: Option<Box<str>>,
}

/// The backend that a transaction has on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub shard: ShardId,
    pub pid: i32,
    /// The server's name of the backend's transaction: another one is not ours.
    pub transaction: Box<str>,
}

/// One wait on one shard, as its server tells it. Equal ones are one and the same wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wait {
    pub shard: ShardId,
    pub pid: i32,
    pub transaction: Box<str>,
    /// Since when it waits, in the server's words.
    pub since: Box<str>,
    pub blocker: Blocker,
}

/// Who is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blocker {
    Running {
        pid: i32,
        transaction: Box<str>,
    },
    /// The prepared part of a transaction with this name.
    Prepared {
        name: Box<str>,
    },
}

/// A transaction that must end, and the ring, beginning with its own wait: each waits for who waits next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub member: MemberId,
    pub ring: Vec<Wait>,
}

/// Who must end so that no ring over shards is left.
#[must_use]
pub fn victims(members: &[Member], waits: &[Wait]) -> Vec<Victim> {
    let mut graph = Graph::of(members, waits);
    let youngest_first: BTreeSet<MemberId> = members.iter().map(|member| member.id).collect();
    let mut found = Vec::new();
    for member in youngest_first.into_iter().rev() {
        let Some(ring) = graph.ring(&Node::Member(member)) else {
            continue;
        };
        let first = ring.first().map(|wait| wait.shard);
        if ring.iter().all(|wait| Some(wait.shard) == first) {
            // The server sees it whole, and ends one of its own choice.
            continue;
        }
        let ring = ring.into_iter().cloned().collect();
        graph.remove(&Node::Member(member));
        found.push(Victim { member, ring });
    }
    found
}

/// The waits that were there at both looks.
#[must_use]
pub fn confirmed(first: &[Wait], second: &[Wait]) -> Vec<Wait> {
    let first: BTreeSet<&Wait> = first.iter().collect();
    let still = second.iter().filter(|wait| first.contains(wait));
    still.cloned().collect()
}

/// Who waits or is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node<'a> {
    Member(MemberId),
    /// A transaction of one shard.
    Alone {
        shard: ShardId,
        pid: i32,
        transaction: &'a str,
    },
    /// A prepared part that nobody who waits has.
    Prepared(&'a str),
}

/// Who waits for whom.
struct Graph<'a> {
    waits: BTreeMap<Node<'a>, BTreeMap<Node<'a>, &'a Wait>>,
}

impl<'a> Graph<'a> {
    fn of(members: &'a [Member], waits: &'a [Wait]) -> Self {
        let mut parts = BTreeMap::new();
        let mut names = BTreeMap::new();
        for member in members {
            for part in &member.parts {
                parts.insert((part.shard, part.pid, &*part.transaction), member.id);
            }
            if let Some(name) = &member.name {
                names.insert(&**name, member.id);
            }
        }
        let running = |shard: ShardId, pid: i32, transaction: &'a str| {
            let member = parts.get(&(shard, pid, transaction));
            member.map_or(
                Node::Alone {
                    shard,
                    pid,
                    transaction,
                },
                |member| Node::Member(*member),
            )
        };
        let mut graph = Self {
            waits: BTreeMap::new(),
        };
        for wait in waits {
            let waiter = running(wait.shard, wait.pid, &wait.transaction);
            let blocker = match &wait.blocker {
                Blocker::Running { pid, transaction } => running(wait.shard, *pid, transaction),
                Blocker::Prepared { name } => names
                    .get(&**name)
                    .map_or(Node::Prepared(name), |member| Node::Member(*member)),
            };
            let least = graph
                .waits
                .entry(waiter)
                .or_default()
                .entry(blocker)
                .or_insert(wait);
            // Of several waits between the same two the same one is told, in whatever order they come.
            *least = (*least).min(wait);
        }
        graph
    }

    /// The shortest way from a node back to it.
    fn ring(&self, start: &Node<'a>) -> Option<Vec<&'a Wait>> {
        let mut came: BTreeMap<&Node<'a>, (&Node<'a>, &'a Wait)> = BTreeMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(node) = next.pop_front() {
            for (blocker, wait) in self.waits.get(node).into_iter().flatten() {
                if came.contains_key(blocker) {
                    continue;
                }
                came.insert(blocker, (node, wait));
                if blocker == start {
                    return Some(way_back(&came, start));
                }
                next.push_back(blocker);
            }
        }
        None
    }

    /// It waits for nobody any more.
    fn remove(&mut self, node: &Node<'a>) {
        self.waits.remove(node);
    }
}

fn way_back<'a>(
    came: &BTreeMap<&Node<'a>, (&Node<'a>, &'a Wait)>,
    start: &Node<'a>,
) -> Vec<&'a Wait> {
    let mut ring = Vec::new();
    let mut at = start;
    while let Some((from, wait)) = came.get(at) {
        ring.push(*wait);
        at = from;
        if at == start {
            break;
        }
    }
    ring.reverse();
    ring
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(begun: i64, parts: &[(u16, i32)]) -> Member {
        Member {
            id: MemberId {
                begun,
                owner: 1,
                number: u64::try_from(begun).expect("not negative"),
            },
            parts: parts
                .iter()
                .map(|(shard, pid)| Part {
                    shard: ShardId(*shard),
                    pid: *pid,
                    transaction: format!("{pid}/1").into(),
                })
                .collect(),
            name: None,
        }
    }

    fn wait(shard: u16, pid: i32, blocker: i32) -> Wait {
        Wait {
            shard: ShardId(shard),
            pid,
            transaction: format!("{pid}/1").into(),
            since: "then".into(),
            blocker: Blocker::Running {
                pid: blocker,
                transaction: format!("{blocker}/1").into(),
            },
        }
    }

    fn ended(members: &[Member], waits: &[Wait]) -> Vec<i64> {
        let victims = victims(members, waits);
        victims.iter().map(|victim| victim.member.begun).collect()
    }

    #[test]
    fn of_two_that_cross_the_younger_ends_and_the_ring_is_told_from_its_wait_on() {
        let members = [
            member(1, &[(0, 11), (1, 22)]),
            member(2, &[(0, 12), (1, 21)]),
        ];
        let waits = [wait(0, 12, 11), wait(1, 22, 21)];
        let found = victims(&members, &waits);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].member, members[1].id);
        assert_eq!(found[0].ring, waits);
    }

    #[test]
    fn a_ring_may_lead_through_transactions_of_one_shard() {
        let members = [
            member(1, &[(0, 11), (1, 22)]),
            member(2, &[(0, 12), (1, 21)]),
        ];
        let waits = [wait(0, 12, 99), wait(0, 99, 11), wait(1, 22, 21)];
        assert_eq!(ended(&members, &waits), [2]);
    }

    #[test]
    fn a_chain_is_left_alone() {
        let members = [
            member(1, &[(0, 11), (1, 21)]),
            member(2, &[(0, 12), (1, 22), (2, 32)]),
            member(3, &[(1, 23), (2, 33)]),
        ];
        let waits = [wait(0, 12, 11), wait(1, 23, 22), wait(2, 33, 32)];
        assert_eq!(ended(&members, &waits), [0; 0]);
    }

    #[test]
    fn another_transaction_of_the_same_backend_is_another() {
        let members = [
            member(1, &[(0, 11), (1, 22)]),
            member(2, &[(0, 12), (1, 21)]),
        ];
        let mut waits = [wait(0, 12, 11), wait(1, 22, 21)];
        waits[1].blocker = Blocker::Running {
            pid: 21,
            transaction: "21/2".into(),
        };
        assert_eq!(ended(&members, &waits), [0; 0]);
    }

    #[test]
    fn what_one_server_sees_is_left_to_it() {
        let members = [member(1, &[(0, 11), (1, 21)])];
        let waits = [wait(0, 11, 12), wait(0, 12, 11)];
        assert_eq!(ended(&members, &waits), [0; 0]);
    }

    #[test]
    fn a_prepared_part_is_its_transaction() {
        let mut members = [
            member(1, &[(0, 11), (1, 22)]),
            member(2, &[(0, 12), (1, 21)]),
        ];
        members[0].name = Some("shardway:1:…".into());
        let mut waits = [wait(0, 12, 11), wait(1, 22, 21)];
        waits[0].blocker = Blocker::Prepared {
            name: "shardway:1:…".into(),
        };
        assert_eq!(ended(&members, &waits), [2]);
        members[0].name = None;
        assert_eq!(ended(&members, &waits), [0; 0]);
    }

    #[test]
    fn one_that_is_on_two_rings_breaks_both() {
        let members = [
            member(1, &[(0, 11), (1, 21)]),
            member(2, &[(0, 12), (2, 32)]),
            member(3, &[(0, 13), (1, 23), (2, 33)]),
        ];
        let waits = [
            wait(1, 21, 23),
            wait(2, 32, 33),
            wait(0, 13, 11),
            wait(0, 13, 12),
        ];
        assert_eq!(ended(&members, &waits), [3]);
    }

    #[test]
    fn only_what_both_looks_have_seen_counts() {
        let (first, mut second) = ([wait(0, 11, 12)], [wait(0, 11, 12)]);
        assert_eq!(confirmed(&first, &second), first);
        second[0].since = "later".into();
        assert_eq!(confirmed(&first, &second), []);
    }

    /// Some transactions with a backend on each of three shards, and waits between any two of them, but no ring that one
    /// server sees whole: on each shard those wait who come later in an order of its own.
    fn any_graph() -> impl Strategy<Value = (Vec<Member>, Vec<Wait>)> {
        (2..9_i32).prop_flat_map(|count| {
            let waits = prop::collection::vec((0..3_u16, 0..count, 0..count), 0..20);
            waits.prop_map(move |waits| {
                // Every third is of one shard only: nobody's member.
                let members = (0..count).filter(|at| at % 3 != 2).map(|at| {
                    let parts: Vec<(u16, i32)> = (0..3).map(|shard| (shard, at)).collect();
                    member(i64::from(at * 7 % 10), &parts)
                });
                let turn = |shard: u16, at: i32| at * [1, 3, 7][usize::from(shard)] % 11;
                let waits = waits
                    .into_iter()
                    .filter(|(shard, one, other)| turn(*shard, *one) > turn(*shard, *other));
                (
                    members.collect(),
                    waits
                        .map(|(shard, one, other)| wait(shard, one, other))
                        .collect(),
                )
            })
        })
    }

    proptest! {
        #[test]
        fn what_ends_was_on_a_ring_and_leaves_none((members, waits) in any_graph()) {
            let found = victims(&members, &waits);
            for Victim { member, ring } in &found {
                let own = members.iter().find(|own| own.id == *member).expect("one of them");
                let whose = |shard: ShardId, pid: i32| {
                    let found = members.iter().find(|own| {
                        own.parts.iter().any(|part| part.shard == shard && part.pid == pid)
                    });
                    found.map_or((Some(shard), pid), |own| (None, own.parts[0].pid))
                };
                prop_assert_eq!(whose(ring[0].shard, ring[0].pid).1, own.parts[0].pid);
                let count = ring.len();
                for (at, wait) in ring.iter().enumerate() {
                    prop_assert!(waits.contains(wait));
                    let Blocker::Running { pid, .. } = &wait.blocker else {
                        return Err(TestCaseError::fail("none is prepared"));
                    };
                    let next = &ring[(at + 1) % count];
                    prop_assert_eq!(whose(wait.shard, *pid), whose(next.shard, next.pid));
                }
                let shards: BTreeSet<ShardId> = ring.iter().map(|wait| wait.shard).collect();
                prop_assert!(shards.len() > 1);
            }
            // Without those nobody else has to end.
            let gone = |wait: &&Wait| !found.iter().any(|victim| {
                let own = members.iter().find(|own| own.id == victim.member);
                own.is_some_and(|own| own.parts.iter().any(|part| part.shard == wait.shard && part.pid == wait.pid))
            });
            let left: Vec<Wait> = waits.iter().filter(gone).cloned().collect();
            prop_assert_eq!(victims(&members, &left), Vec::new());
        }

        #[test]
        fn whoever_looks_finds_the_same((members, waits) in any_graph(), turn in 0..20_usize) {
            let (mut others, mut turned) = (members.clone(), waits.clone());
            others.reverse();
            let middle = turn % turned.len().max(1);
            turned.rotate_left(middle);
            prop_assert_eq!(victims(&others, &turned), victims(&members, &waits));
        }
    }
}
