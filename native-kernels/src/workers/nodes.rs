//! Which NUMA node each worker is of, and which part of divided work belongs to whom.
//!
//! It knows workers and numbers. What a node is to the operating system is not asked here: nodes are numbered from zero
//! as they come, in the order of the numbers that they were given with, and only those that have workers.

use std::ops::Range;

/// The nodes of a set of workers, at least one.
///
/// **Invariant:** `upto` ascends strictly, and ends with the number of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    /// Node of each worker.
    of_workers: Vec<usize>,
    /// Workers of each node and of all before it.
    upto: Vec<usize>,
}

impl Nodes {
    /// The nodes of these workers; all are of one if `nodes` is empty.
    ///
    /// **Panics** if it is neither empty nor one for each worker.
    pub fn new(workers: usize, nodes: &[u32]) -> Self {
        if nodes.is_empty() {
            return Self {
                of_workers: vec![0; workers],
                upto: vec![workers],
            };
        }
        assert!(nodes.len() == workers, "{workers} workers on {nodes:?}");
        let mut known = nodes.to_vec();
        known.sort_unstable();
        known.dedup();
        let place = |node: &u32| known.binary_search(node).expect("it is among them");
        let upto = known
            .iter()
            .map(|last| nodes.iter().filter(|node| *node <= last).count());
        Self {
            of_workers: nodes.iter().map(place).collect(),
            upto: upto.collect(),
        }
    }

    /// Number of nodes.
    #[allow(clippy::len_without_is_empty, reason = "there is always a node")]
    pub fn len(&self) -> usize {
        self.upto.len()
    }

    /// The node of a worker.
    pub fn of(&self, worker: usize) -> usize {
        self.of_workers[worker]
    }

    /// Workers of a node.
    pub fn workers_of(&self, node: usize) -> impl Iterator<Item = usize> {
        let of_workers = self.of_workers.iter().enumerate();
        of_workers.filter_map(move |(worker, of)| (*of == node).then_some(worker))
    }

    /// Which of so many items are a node's: as large a part as it has of the workers. The parts of all nodes follow each
    /// other and are all items.
    pub fn share(&self, items: usize, node: usize) -> Range<usize> {
        let [.., workers] = self.upto[..] else {
            unreachable!("there is a node")
        };
        if self.upto.len() == 1 {
            return 0..items;
        }
        // Upwards, so that a single item goes to the first node, where the caller works.
        let end = |upto: usize| (items * upto).div_ceil(workers);
        let before = node.checked_sub(1).map_or(0, |last| self.upto[last]);
        end(before)..end(self.upto[node])
    }

    /// Which of the panels of a matrix lie on a node: it was packed so, and products are divided so. In whole pairs of
    /// panels, which is how they are multiplied.
    pub fn panels(&self, panels: usize, node: usize) -> Range<usize> {
        let pairs = self.share(panels.div_ceil(2), node);
        (2 * pairs.start).min(panels)..(2 * pairs.end).min(panels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(nodes: &[u32], items: usize) -> Vec<Range<usize>> {
        let nodes = Nodes::new(nodes.len(), nodes);
        (0..nodes.len())
            .map(|node| nodes.share(items, node))
            .collect()
    }

    #[test]
    fn nodes_get_what_their_workers_are_of_all_workers() {
        assert_eq!(shares(&[0, 0, 1, 1], 8), [0..4, 4..8]);
        assert_eq!(shares(&[7, 2, 7, 7], 8), [0..2, 2..8]);
        assert_eq!(shares(&[0, 0, 0, 1], 9), [0..7, 7..9]);
        // More nodes than items, or none.
        assert_eq!(shares(&[0, 1, 2, 3], 1), [0..1, 1..1, 1..1, 1..1]);
        assert_eq!(shares(&[0, 1, 2, 3], 2), [0..1, 1..1, 1..2, 2..2]);
        assert_eq!(shares(&[0, 1], 0), [0..0, 0..0]);
        // A node without workers is none.
        assert_eq!(shares(&[0, 0, 9], 3), [0..2, 2..3]);
        assert_eq!(shares(&[5], 3), shares(&[0], 3));
        assert_eq!(Nodes::new(3, &[]), Nodes::new(3, &[4, 4, 4]));
    }

    #[test]
    fn every_item_and_every_panel_is_one_node_s() {
        for of in [&[0, 0, 1, 1][..], &[0, 0, 0, 1], &[0, 1, 2, 3, 4, 5], &[3]] {
            let nodes = Nodes::new(of.len(), of);
            for items in 0..70 {
                let (mut shared, mut paneled) = (0, 0);
                for node in 0..nodes.len() {
                    let (share, panels) = (nodes.share(items, node), nodes.panels(items, node));
                    assert_eq!((share.start, panels.start), (shared, paneled));
                    assert!(panels.is_empty() || panels.start.is_multiple_of(2));
                    (shared, paneled) = (share.end, panels.end);
                }
                assert_eq!((shared, paneled), (items, items));
            }
        }
    }

    #[test]
    fn workers_are_found_by_node() {
        let nodes = Nodes::new(4, &[8, 1, 8, 1]);
        assert_eq!([0, 1, 2, 3].map(|worker| nodes.of(worker)), [1, 0, 1, 0]);
        assert!(nodes.workers_of(0).eq([1, 3]) && nodes.workers_of(1).eq([0, 2]));
    }
}
