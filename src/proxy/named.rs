//! What a client has given names: few in small room, many found fast.

use std::collections::HashMap;

/// As many are looked through one by one.
const FEW: usize = 8;

/// Values by the name that the client gave.
#[derive(Debug)]
pub(super) struct Named<V> {
    few: Vec<(Box<[u8]>, V)>,
    /// All of them, when there are more than few.
    many: Option<Box<Many<V>>>,
}

type Many<V> = HashMap<Box<[u8]>, V, foldhash::fast::RandomState>;

impl<V> Default for Named<V> {
    fn default() -> Self {
        Self {
            few: Vec::new(),
            many: None,
        }
    }
}

impl<V> Named<V> {
    /// The value of this name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&V> {
        match &self.many {
            Some(many) => many.get(name),
            None => self.place(name).map(|at| &self.few[at].1),
        }
    }

    /// Whether there is one of this name.
    pub(super) fn contains_key(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Every value, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        let many = self.many.iter().flat_map(|many| many.values());
        self.few.iter().map(|(_, value)| value).chain(many)
    }

    /// Gives a name a value, which replaces the one before.
    pub(super) fn insert(&mut self, name: Box<[u8]>, value: V) {
        if let Some(many) = &mut self.many {
            many.insert(name, value);
        } else if let Some(at) = self.place(&name) {
            self.few[at].1 = value;
        } else if self.few.len() < FEW {
            self.few.reserve_exact(1);
            self.few.push((name, value));
        } else {
            let mut many: Many<V> = std::mem::take(&mut self.few).into_iter().collect();
            many.insert(name, value);
            self.many = Some(Box::new(many));
        }
    }

    /// Takes a name out, with its value.
    pub(super) fn remove_entry(&mut self, name: &[u8]) -> Option<(Box<[u8]>, V)> {
        match &mut self.many {
            Some(many) => many.remove_entry(name),
            None => self.place(name).map(|at| self.few.swap_remove(at)),
        }
    }

    /// Takes a name out; its value.
    pub(super) fn remove(&mut self, name: &[u8]) -> Option<V> {
        self.remove_entry(name).map(|(_, value)| value)
    }

    /// Keeps those that `keep` says.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.retain_mut(|value| keep(value));
    }

    fn retain_mut(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        match &mut self.many {
            Some(many) => many.retain(|_, value| keep(value)),
            None => self.few.retain_mut(|(_, value)| keep(value)),
        }
    }

    /// Shows every value, in no order, to be changed.
    pub(super) fn each(&mut self, mut change: impl FnMut(&mut V)) {
        self.retain_mut(|value| {
            change(value);
            true
        });
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.few.clear();
        self.many = None;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.many.as_ref().map_or(self.few.len(), |many| many.len())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives back the room that is not used.
    pub(super) fn give_back(&mut self) {
        match &mut self.many {
            Some(many) if many.len() <= FEW => {
                self.few = many.drain().collect();
                self.many = None;
            }
            Some(many) => many.shrink_to_fit(),
            None => self.few.shrink_to_fit(),
        }
    }

    fn place(&self, name: &[u8]) -> Option<usize> {
        self.few.iter().position(|(known, _)| **known == *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Box<[u8]> {
        number.to_string().into_bytes().into()
    }

    #[test]
    fn few_and_many_are_found_alike() {
        for count in [0, 1, FEW, FEW + 1, 10 * FEW] {
            let mut named = Named::default();
            for number in 0..count {
                named.insert(name(number), 0);
                named.insert(name(number), number);
            }
            assert_eq!((named.len(), named.is_empty()), (count, count == 0));
            for number in (0..count).skip(2) {
                assert_eq!(named.get(&name(number)), Some(&number));
                assert_eq!(named.remove(&name(number)), Some(number));
                assert!(!named.contains_key(&name(number)));
                named.give_back();
            }
            assert_eq!(named.len(), count.min(2));
            assert_eq!(named.get(&name(0)), (count > 0).then_some(&0));
            named.retain(|number| *number == 0);
            assert_eq!(named.len(), count.min(1));
            named.clear();
            assert!(named.is_empty());
        }
    }
}
