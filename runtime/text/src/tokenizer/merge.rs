//! Merging of neighbours, best first: the loop that byte-pair encoding and SentencePiece share.
//!
//! Symbols form a linked list; the heap holds every pair of neighbours that could merge. A pair whose symbols have
//! merged otherwise since is found stale when it is taken. n symbols cost O(n log n).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol, no token.
pub(super) const NONE: u32 = u32::MAX;
const END: usize = usize::MAX;

/// A stretch of the text, and the token that it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// First byte.
    pub(super) start: usize,
    /// After the last byte.
    pub(super) end: usize,
    /// Its token, or [`NONE`].
    pub(super) id: u32,
    previous: usize,
    next: usize,
}

/// A pair that may merge. The order of the fields is the order of preference: smallest key, then leftmost.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: u32,
    left: usize,
    right: usize,
    end: usize,
    id: u32,
}

/// Symbols and heap, kept from word to word to spare allocations.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the symbols of the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds a symbol behind those that are there.
    pub(super) fn push(&mut self, start: usize, end: usize, id: u32) {
        let at = self.symbols.len();
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol {
            start,
            end,
            id,
            previous: at.checked_sub(1).unwrap_or(END),
            next: END,
        });
    }

    /// Merges until no pair can; `pair` says what two neighbours make: the smaller its key, the earlier.
    pub(super) fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        self.heap.clear();
        for left in 1..self.symbols.len() {
            self.propose(left - 1, left, &pair);
        }
        while let Some(Reverse(candidate)) = self.heap.pop() {
            let Candidate {
                left, right, end, ..
            } = candidate;
            if self.symbols[left].next != right || self.symbols[right].end != end {
                continue;
            }
            let next = self.symbols[right].next;
            self.symbols[right].next = right; // Dead: nothing is its own neighbour.
            self.symbols[left].next = next;
            self.symbols[left].end = end;
            self.symbols[left].id = candidate.id;
            if next != END {
                self.symbols[next].previous = left;
                self.propose(left, next, &pair);
            }
            let previous = self.symbols[left].previous;
            if previous != END {
                self.propose(previous, left, &pair);
            }
        }
    }

    fn propose(
        &mut self,
        left: usize,
        right: usize,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        if let Some((key, id)) = pair(&self.symbols[left], &self.symbols[right]) {
            let end = self.symbols[right].end;
            self.heap.push(Reverse(Candidate {
                key,
                left,
                right,
                end,
                id,
            }));
        }
    }

    /// The symbols that are left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        let first = self.symbols.first();
        std::iter::successors(first, |symbol| self.symbols.get(symbol.next))
    }
}
