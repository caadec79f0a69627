//! Many patterns at once in one pass over a stream (Aho and Corasick, 1975).
//!
//! Written here because the stream has to know more than the matches: how much of its end may be the beginning
//! of one. That is the depth of the state, which general libraries do not show.

/// The state at the beginning, and wherever nothing begins.
pub(super) const ROOT: u32 = 0;

/// One beginning of some pattern. Its continuations are a linked list: nearly all have one.
#[derive(Clone, Copy, Default)]
struct Node {
    byte: u8,
    /// The first of its continuations; [`ROOT`] for none.
    child: u32,
    /// The next one that continues the same beginning.
    sibling: u32,
    /// The longest beginning that this one ends in.
    fail: u32,
    depth: u32,
    /// How long the longest pattern is that this one ends in; 0 for none.
    found: u32,
}

pub(super) struct Search {
    nodes: Vec<Node>,
    /// The continuations of the root, which are looked for at almost every byte.
    first: [u32; 256],
}

impl Default for Search {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], first: [ROOT; 256] }
    }
}

impl Search {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1
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
            self.nodes[at as usize].found = pattern.len() as u32;
        }
    }

    fn grow(&mut self, parent: u32, byte: u8) -> u32 {
        let new = self.nodes.len() as u32;
        let of = &mut self.nodes[parent as usize];
        let node = Node { byte, sibling: of.child, depth: of.depth + 1, ..Node::default() };
        of.child = new;
        self.nodes.push(node);
        if parent == ROOT {
            self.first[usize::from(byte)] = new;
        }
        new
    }

    fn child(&self, parent: u32, byte: u8) -> Option<u32> {
        if parent == ROOT {
            return Some(self.first[usize::from(byte)]).filter(|child| *child != ROOT);
        }
        let mut at = self.nodes[parent as usize].child;
        while at != ROOT {
            let node = &self.nodes[at as usize];
            if node.byte == byte {
                return Some(at);
            }
            at = node.sibling;
        }
        None
    }

    /// To be called once, after the last pattern: finds where to go on when a beginning does not continue.
    pub(super) fn finish(&mut self) {
        let mut order = vec![ROOT];
        let mut next = 0;
        while let Some(parent) = order.get(next).copied() {
            next += 1;
            let mut at = self.nodes[parent as usize].child;
            while at != ROOT {
                order.push(at);
                let node = self.nodes[at as usize];
                let fail = if parent == ROOT {
                    ROOT
                } else {
                    self.step(self.nodes[parent as usize].fail, node.byte)
                };
                let shorter = self.nodes[fail as usize].found;
                let own = &mut self.nodes[at as usize];
                own.fail = fail;
                own.found = own.found.max(shorter);
                at = node.sibling;
            }
        }
    }

    /// The state after one more byte.
    pub(super) fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.child(state, byte) {
                Some(next) => return next,
                None if state == ROOT => return ROOT,
                None => state = self.nodes[state as usize].fail,
            }
        }
    }

    /// How long the longest beginning is that the text ends in.
    pub(super) fn depth(&self, state: u32) -> u32 {
        self.nodes[state as usize].depth
    }

    /// How long the longest pattern is that ends here; 0 for none.
    pub(super) fn ends_here(&self, state: u32) -> u32 {
        self.nodes[state as usize].found
    }
}
