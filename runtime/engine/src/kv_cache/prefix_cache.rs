//! Full blocks by what they hold: their own tokens, after the tokens of all blocks before them.
//!
//! A block is found by its parent's entry and its tokens, and both are compared, not only hashed: since an entry names
//! one registration, a chain of entries names one beginning of a text, and a collision of hashes can do no harm.

use super::BlockId;
use crate::request::TokenId;
use std::collections::HashMap;

/// The entry before a block; the default is the beginning of a text. `Broken` has no entry, and neither have blocks
/// behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    #[default]
    Start,
    Entry(u64),
    Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Box<[TokenId]>,
}

#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: HashMap<Key, (BlockId, u64)>,
    keys: HashMap<BlockId, Key>,
    /// Number of the newest entry; none is ever used again.
    newest: u64,
}

impl PrefixCache {
    /// The block that holds `tokens` after `parent`, and its entry.
    pub fn find(&self, parent: Parent, tokens: &[TokenId]) -> Option<(BlockId, Parent)> {
        if parent == Parent::Broken {
            return None;
        }
        let key = Key {
            parent,
            tokens: tokens.into(),
        };
        self.entries
            .get(&key)
            .map(|&(block, entry)| (block, Parent::Entry(entry)))
    }

    /// `block` holds `tokens` after `parent`. Gives the entry for what follows: that of an equal block if there is one
    /// already, which then stays the one that is found.
    pub fn register(&mut self, parent: Parent, tokens: &[TokenId], block: BlockId) -> Parent {
        if parent == Parent::Broken {
            return Parent::Broken;
        }
        let key = Key {
            parent,
            tokens: tokens.into(),
        };
        if self.entries.contains_key(&key) {
            // Two sequences computed the same at once. What follows cannot hang on an entry that this sequence does not
            // hold, since it may be gone before.
            return Parent::Broken;
        }
        self.newest += 1;
        self.entries.insert(key.clone(), (block, self.newest));
        self.keys.insert(block, key);
        Parent::Entry(self.newest)
    }

    /// The contents of `block` are lost.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(key) = self.keys.remove(&block) {
            self.entries.remove(&key);
        }
    }

    /// Does `block` hold something that can be found?
    pub fn holds(&self, block: BlockId) -> bool {
        self.keys.contains_key(&block)
    }

    pub fn check(&self) {
        assert_eq!(
            self.entries.len(),
            self.keys.len(),
            "entries and blocks are pairs"
        );
        for (block, key) in &self.keys {
            assert_eq!(
                self.entries.get(key).map(|entry| entry.0),
                Some(*block),
                "entry of block {block}"
            );
        }
    }
}
