//! What a step must be before it runs.

use super::Step;
use crate::kv_cache::KvCache;

/// **Panics** if it is not, as [`super::Program::run`] says.
pub(super) fn check_step(step: &Step<'_>, cache: &KvCache) {
    let layout = cache.layout();
    let rows = step.tokens.len();
    let mut next = 0;
    for (i, s) in step.sequences.iter().enumerate() {
        assert!(
            s.query_start >= next && s.query_len <= rows && s.query_start <= rows - s.query_len,
            "sequence {i}: {} rows from {} on, after {next} and within {rows}",
            s.query_len,
            s.query_start,
        );
        next = s.query_start + s.query_len;
        assert!(
            s.query_len <= s.context_len,
            "sequence {i}: {} queries in a context of {}",
            s.query_len,
            s.context_len
        );
        let blocks = s.context_len.div_ceil(layout.block_size);
        let table = s.block_table.get(..blocks);
        let table = table
            .unwrap_or_else(|| panic!("sequence {i}: {} blocks of {blocks}", s.block_table.len()));
        let beyond = table.iter().find(|b| **b as usize >= layout.num_blocks);
        assert!(
            beyond.is_none(),
            "sequence {i}: block {beyond:?} of {}",
            layout.num_blocks
        );
    }
    check_writers(step, layout.block_size);
    let beyond = step.wanted.iter().find(|row| **row >= rows);
    assert!(beyond.is_none(), "wanted row {beyond:?} of {rows}");
}

/// **Panics** if a block that a sequence writes stands in another place as well.
fn check_writers(step: &Step<'_>, block_size: usize) {
    let mut written: Vec<u32> = Vec::new();
    for s in step.sequences.iter().filter(|s| s.query_len > 0) {
        let blocks = s.position() / block_size..s.context_len.div_ceil(block_size);
        written.extend(&s.block_table[blocks]);
    }
    written.sort_unstable();
    let twice = written.windows(2).find(|pair| pair[0] == pair[1]);
    assert!(twice.is_none(), "block {twice:?} is written twice");
    for (i, s) in step.sequences.iter().enumerate() {
        let only_read = &s.block_table[..s.position() / block_size];
        let both = only_read
            .iter()
            .find(|block| written.binary_search(block).is_ok());
        assert!(
            both.is_none(),
            "sequence {i} reads block {both:?}, which is written in this step"
        );
    }
}
