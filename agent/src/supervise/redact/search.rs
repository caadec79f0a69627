//! Many patterns at once in one pass over a stream (Aho and Corasick, 1975).
//!
//! Written here because the stream has to know more than the matches: how much of its end may be the beginning
//! of one. That is the depth of the state, which general libraries do not show. A secret has tens of forms, so
//! what counts is the memory of one beginning: nine bytes, and a row of the table where it goes on in several
//! ways.

use std::collections::{BTreeMap, VecDeque};

/// The state at the beginning, and wherever nothing begins.
pub(super) const ROOT: u32 = 0;

/// How long a beginning is.
const DEPTH: u32 = (1 << 28) - 1;
/// The beginning that is stored after this one continues it.
const NEXT: u32 = 1 << 28;
/// Others continue it, too: they are in the table.
const BRANCHES: u32 = 1 << 29;
/// It is a pattern.
const WHOLE: u32 = 1 << 30;
/// It ends in a pattern.
const FOUND: u32 = 1 << 31;

pub(super) struct Search {
    /// The last byte of each beginning of some pattern.
    bytes: Vec<u8>,
    /// The longest beginning that it ends in, itself left out.
    fail: Vec<u32>,
    /// [`DEPTH`] and the flags above.
    facts: Vec<u32>,
    /// The continuations that are not stored right after what they continue, but for those of the root.
    branches: BTreeMap<(u32, u8), u32>,
    /// The continuations of the root, which are looked for at almost every byte; [`ROOT`] for none.
    first: [u32; 256],
}

impl Default for Search {
    fn default() -> Self {
        let (bytes, fail, facts) = (vec![0], vec![ROOT], vec![0]);
        Self { bytes, fail, facts, branches: BTreeMap::new(), first: [ROOT; 256] }
    }
}

impl Search {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == 1
    }

    pub(super) fn add(&mut self, pattern: &[u8]) {
        let mut at = ROOT;
        for byte in pattern.iter().copied() {
            at = match self.child(at, byte) {
                Some(next) => next,
                None => self.grow(at, byte),
            };
        }
        if at != ROOT {
            self.facts[at as usize] |= WHOLE;
        }
    }

    fn grow(&mut self, parent: u32, byte: u8) -> u32 {
        let new = self.bytes.len() as u32;
        let depth = self.depth(parent) + 1;
        if parent == ROOT {
            self.first[usize::from(byte)] = new;
        } else if parent + 1 == new {
            self.facts[parent as usize] |= NEXT;
        } else {
            self.facts[parent as usize] |= BRANCHES;
            self.branches.insert((parent, byte), new);
        }
        self.bytes.push(byte);
        self.fail.push(ROOT);
        self.facts.push(depth);
        new
    }

    fn child(&self, parent: u32, byte: u8) -> Option<u32> {
        if parent == ROOT {
            return Some(self.first[usize::from(byte)]).filter(|child| *child != ROOT);
        }
        let facts = self.facts[parent as usize];
        if facts & NEXT != 0 && self.bytes[parent as usize + 1] == byte {
            return Some(parent + 1);
        }
        if facts & BRANCHES == 0 {
            return None;
        }
        self.branches.get(&(parent, byte)).copied()
    }

    /// To be called once, after the last pattern: finds where to go on when a beginning does not continue.
    pub(super) fn finish(&mut self) {
        // The shorter ones first.
        let mut queue = VecDeque::from([ROOT]);
        while let Some(parent) = queue.pop_front() {
            let from = queue.len();
            if parent == ROOT {
                queue.extend(self.first.iter().filter(|child| **child != ROOT));
            } else {
                queue.extend((self.facts[parent as usize] & NEXT != 0).then_some(parent + 1));
                if self.facts[parent as usize] & BRANCHES != 0 {
                    queue.extend(
                        self.branches.range((parent, 0)..=(parent, u8::MAX)).map(|(_, child)| *child),
                    );
                }
            }
            for at in queue.range(from..).copied() {
                let fail = match parent {
                    ROOT => ROOT,
                    _ => self.step(self.fail[parent as usize], self.bytes[at as usize]),
                };
                self.fail[at as usize] = fail;
                let own = self.facts[at as usize];
                if own & WHOLE != 0 || self.facts[fail as usize] & FOUND != 0 {
                    self.facts[at as usize] = own | FOUND;
                }
            }
        }
        self.bytes.shrink_to_fit();
        self.fail.shrink_to_fit();
        self.facts.shrink_to_fit();
    }

    /// The state after one more byte.
    pub(super) fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.child(state, byte) {
                Some(next) => return next,
                None if state == ROOT => return ROOT,
                None => state = self.fail[state as usize],
            }
        }
    }

    /// How long the longest beginning is that the text ends in.
    pub(super) fn depth(&self, state: u32) -> u32 {
        self.facts[state as usize] & DEPTH
    }

    /// How long the longest pattern is that ends here; 0 for none.
    pub(super) fn ends_here(&self, mut state: u32) -> u32 {
        while self.facts[state as usize] & FOUND != 0 {
            if self.facts[state as usize] & WHOLE != 0 {
                return self.depth(state);
            }
            state = self.fail[state as usize];
        }
        0
    }

    /// What it takes, bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        // A row of the table, by the allocator's count: keys and values in nodes that are half full or more.
        let row = 2 * (size_of::<(u32, u8)>() + size_of::<u32>()) + 4;
        self.bytes.capacity() + 4 * (self.fail.capacity() + self.facts.capacity()) + row * self.branches.len()
    }
}
