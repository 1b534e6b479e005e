//! Who holds which KV block: a pool with reference counts, and a cache of full blocks by their contents.
//!
//! The bytes are the kernels' business; here are only numbers.

mod block_pool;
mod prefix_cache;

use crate::request::TokenId;
use block_pool::BlockPool;
use prefix_cache::{Parent, PrefixCache};

/// Number of a KV block.
pub(crate) type BlockId = u32;

/// The blocks of an engine.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    pool: BlockPool,
    prefixes: Option<PrefixCache>,
    block_size: usize,
}

/// How many blocks are in which state. Together they are all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCounts {
    /// Hold nothing.
    pub free: usize,
    /// Hold a prefix that nobody uses at the moment.
    pub cached: usize,
    /// Belong to a running sequence.
    pub in_use: usize,
}

/// The blocks of one sequence, and how far their contents are known to the prefix cache.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    /// Full blocks that were offered to the prefix cache, from the first.
    offered: usize,
    /// What the last of them was registered as, if they all were.
    chain: Parent,
}

impl BlockTable {
    /// Blocks by position.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

impl KvBlocks {
    pub fn new(num_blocks: usize, block_size: usize, prefix_caching: bool) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            prefixes: prefix_caching.then(PrefixCache::default),
            block_size,
        }
    }

    /// Tokens that all blocks hold together.
    pub fn capacity(&self) -> usize {
        self.pool.len() * self.block_size
    }

    /// Takes the longest cached beginning of `tokens`, in whole blocks, and gives its length in tokens. `table` must be
    /// empty.
    pub fn take_prefix(&mut self, tokens: &[TokenId], table: &mut BlockTable) -> usize {
        assert!(table.blocks.is_empty(), "a prefix comes first");
        let Some(prefixes) = &self.prefixes else {
            return 0;
        };
        for block_tokens in tokens.chunks_exact(self.block_size) {
            let Some((block, entry)) = prefixes.find(table.chain, block_tokens) else {
                break;
            };
            self.pool.retain(block);
            table.blocks.push(block);
            table.chain = entry;
            table.offered += 1;
        }
        table.blocks.len() * self.block_size
    }

    /// Gives `table` room for `tokens` tokens. False, and nothing changed, if there are not enough blocks.
    pub fn reserve(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = tokens
            .div_ceil(self.block_size)
            .saturating_sub(table.blocks.len());
        if missing > self.pool.available() {
            return false;
        }
        for _ in 0..missing {
            let (block, evicted) = self.pool.take().expect("enough are available");
            if let (true, Some(prefixes)) = (evicted, &mut self.prefixes) {
                prefixes.forget(block);
            }
            table.blocks.push(block);
        }
        true
    }

    /// Tokens that the blocks of `table` have room for.
    pub fn room(&self, table: &BlockTable) -> usize {
        table.blocks.len() * self.block_size
    }

    /// Takes back the blocks that `tokens` tokens do not need. They hold nothing that was offered.
    pub fn trim(&mut self, table: &mut BlockTable, tokens: usize) {
        let needed = tokens.div_ceil(self.block_size);
        debug_assert!(table.offered <= needed, "offered blocks are full");
        while table.blocks.len() > needed {
            let block = table.blocks.pop().expect("there are more than needed");
            self.pool.release(block, false);
        }
    }

    /// Offers blocks that became full to the prefix cache. `tokens` are those whose keys and values were computed.
    pub fn offer(&mut self, table: &mut BlockTable, tokens: &[TokenId]) {
        let Some(prefixes) = &mut self.prefixes else {
            return;
        };
        let full = tokens
            .chunks_exact(self.block_size)
            .zip(&table.blocks)
            .skip(table.offered);
        for (block_tokens, &block) in full {
            table.chain = prefixes.register(table.chain, block_tokens, block);
            table.offered += 1;
        }
    }

    /// Takes all blocks of a sequence back. Those with a known beginning stay cached, the last to be taken first, since
    /// a beginning serves more requests than its continuation.
    pub fn release(&mut self, table: &mut BlockTable) {
        for &block in table.blocks.iter().rev() {
            let cached = self
                .prefixes
                .as_ref()
                .is_some_and(|prefixes| prefixes.holds(block));
            self.pool.release(block, cached);
        }
        *table = BlockTable::default();
    }

    /// How many blocks are in which state.
    pub fn counts(&self) -> BlockCounts {
        self.pool.counts()
    }

    /// **Invariant:** every block is in exactly one state, is counted as often as running sequences hold it, and a
    /// cached one is known to the prefix cache.
    ///
    /// **Panics** if not. `held` are the tables of all running sequences.
    pub fn check_integrity<'a>(&self, held: impl Iterator<Item = &'a BlockTable>) {
        let mut references = vec![0; self.pool.len()];
        held.flat_map(|table| &table.blocks)
            .for_each(|&block| references[block as usize] += 1);
        self.pool.check(&references);
        let BlockCounts {
            free,
            cached,
            in_use,
        } = self.counts();
        assert_eq!(
            free + cached + in_use,
            self.pool.len(),
            "free {free} + cached {cached} + in use {in_use}"
        );
        if let Some(prefixes) = &self.prefixes {
            let known = self
                .pool
                .cached()
                .filter(|&block| prefixes.holds(block))
                .count();
            assert_eq!(known, cached, "cached blocks that the prefix cache knows");
            prefixes.check();
        }
    }
}
