//! A mixture of experts: each row goes through the few gated feed-forward parts that a router ranks highest.
//!
//! The rows of an expert are gathered and multiplied together, so that its weights are read once for all of them; experts
//! that no row chose are not touched. Every (row, expert) pair has a **slot**; slots are ordered by expert, then row, and
//! a row adds its experts' results in ascending order, whatever else is in the step.

use super::activations::{self, Form};
use super::linear::{Parts, Weights, panels_per_chunk};
use super::products::Multiply;
use super::rows::{Norm, Push, resized, rows_per_chunk};
use super::{Buffer, Lowering, Op, Part, Phase, Program, Running, Scratch, assert_width};
use crate::cpu::generic::elementwise::Activation;
use crate::cpu::vector::LANES;
use crate::matrix::Matrix;
use crate::tensor::{Rows, RowsMut};
use crate::workers::Nodes;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;

/// One expert: `down(activation(gate(x)) · up(x))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Goes through the activation.
    pub gate: Weights,
    /// Is multiplied with it.
    pub up: Weights,
    /// Back to the width of the rows.
    pub down: Weights,
}

/// `to += Σ p[e] · expert[e](norm(from))` over the `used` experts of highest probability `p`, the softmax of the router's
/// logits.
///
/// **Source**: Shazeer et al., arXiv 1701.06538, section 2.1; Jiang et al., arXiv 2401.04088, section 2.1.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// `[rows, n]`.
    pub from: Buffer,
    /// Applied to each row first.
    pub norm: Option<Norm>,
    /// `[rows, experts]`: what the router says.
    pub logits: Buffer,
    /// The experts, all of one shape.
    pub experts: Vec<Expert>,
    /// Experts that a row goes through.
    pub used: usize,
    /// Divide the probabilities of those by their sum.
    pub normalize: bool,
    /// Function of the gates.
    pub activation: Activation,
    /// `[rows, n]`.
    pub to: Buffer,
}

impl Mixture {
    pub(super) fn check(&self, program: &Program) {
        let n = program.width(self.from);
        assert_width("to", program.width(self.to), n);
        assert_width("logits", program.width(self.logits), self.experts.len());
        assert!(
            (1..=self.experts.len()).contains(&self.used),
            "{} of {} experts",
            self.used,
            self.experts.len()
        );
        let inner = self.inner();
        for Expert { gate, up, down } in &self.experts {
            for (weights, shape) in [(gate, (inner, n)), (up, (inner, n)), (down, (n, inner))] {
                let found = (weights.matrix.rows(), weights.matrix.cols());
                assert!(found == shape, "expert: {found:?}, expected {shape:?}");
                let bias = weights.bias.as_ref().map_or(shape.0, Vec::len);
                assert_width("bias", bias, shape.0);
            }
        }
    }

    /// Width between the halves of an expert.
    fn inner(&self) -> usize {
        self.experts[0].gate.matrix.rows()
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Arc<Matrix>> {
        self.experts
            .iter()
            .flat_map(|Expert { gate, up, down }| [gate, up, down].map(|weights| &weights.matrix))
    }

    pub(super) fn phases(&self, lowering: &Lowering<'_>, m: usize, push: &mut Push<'_>) {
        push(Part::Route, 1, 1);
        let most = self.most(m);
        let rows = (m * self.used).div_ceil(self.experts.len());
        for (part, weights) in [
            (Part::Gates, &self.experts[0].gate),
            (Part::Downs, &self.experts[0].down),
        ] {
            let panels = weights.matrix.panels();
            let bytes = weights.matrix.panel_bytes();
            let spread = (panels * most).div_ceil(4 * lowering.workers);
            let size = panels_per_chunk(panels, spread, bytes * rows.div_ceil(2));
            let nodes = 0..lowering.nodes.len();
            let runs = nodes.map(|node| runs_of(lowering.nodes, node, panels, size));
            push(part, most * runs.sum::<usize>(), size);
        }
        let size = rows_per_chunk(lowering.workers, m, self.inner() * 8);
        push(Part::Combine, m.div_ceil(size), size);
    }

    pub(super) fn run(
        &self,
        running: &Running<'_>,
        phase: &Phase,
        chunk: usize,
        scratch: &mut Scratch,
    ) {
        let m = running.rows_of(self.from);
        match phase.part {
            Part::Route => {
                // SAFETY: no phase of a mixture writes the router's logits.
                let logits = unsafe { running.read(self.logits) };
                // SAFETY: the phase is one chunk, the only one at work on the routes.
                let routes = unsafe { &mut *running.mixture.routes.get() };
                routes.choose(logits, self.used, self.normalize);
            }
            Part::Gates | Part::Downs => self.multiply(running, phase, chunk, scratch),
            _ => {
                // SAFETY: nobody writes the routes after the first phase.
                let routes = unsafe { &*running.mixture.routes.get() };
                let rows = super::rows_of_chunk(chunk, phase.size, m);
                let n = self.experts[0].down.matrix.rows();
                // SAFETY: written in the phase before, and by nobody in this one.
                let results = unsafe { running.mixture.results.read() };
                // SAFETY: each chunk has rows of its own.
                let mut to = unsafe { running.part(self.to, rows.clone(), 0..n) };
                for (i, row) in rows.enumerate() {
                    let to = to.row_mut(i);
                    for &(slot, weight) in routes.of(row) {
                        let result = &results.row(slot)[..n];
                        to.iter_mut()
                            .zip(result)
                            .for_each(|(to, x)| *to += weight * x);
                    }
                }
            }
        }
    }

    /// Experts that `m` rows can have chosen.
    fn most(&self, m: usize) -> usize {
        self.experts.len().min(m * self.used)
    }

    /// Panels of the matrices of each expert in a phase.
    fn panels(&self, part: Part) -> usize {
        let any = &self.experts[0];
        match part {
            Part::Gates => any.gate.matrix.panels(),
            _ => any.down.matrix.panels(),
        }
    }

    /// Chunks whose panels lie on a node, of the products of `m` rows.
    pub(super) fn chunks_of(&self, nodes: &Nodes, node: usize, phase: &Phase, m: usize) -> usize {
        self.most(m) * runs_of(nodes, node, self.panels(phase.part), phase.size)
    }

    /// Which of the chosen experts a chunk is of, and which run of its panels. Chunks are numbered node by node, those of
    /// a node expert by expert: each node has a part of every matrix.
    fn locate(
        &self,
        nodes: &Nodes,
        phase: &Phase,
        m: usize,
        mut chunk: usize,
    ) -> (usize, Range<usize>) {
        let (panels, size) = (self.panels(phase.part), phase.size);
        for node in 0..nodes.len() {
            let chunks = self.chunks_of(nodes, node, phase, m);
            if chunk < chunks {
                let runs = runs_of(nodes, node, panels, size);
                let share = nodes.panels(panels, node);
                let first = share.start + chunk % runs * size;
                return (chunk / runs, first..share.end.min(first + size));
            }
            chunk -= chunks;
        }
        unreachable!("the chunks of a phase are those of its experts")
    }

    /// Gates or downs of one expert and a run of panels.
    fn multiply(&self, running: &Running<'_>, phase: &Phase, chunk: usize, scratch: &mut Scratch) {
        // SAFETY: nobody writes the routes after the first phase.
        let routes = unsafe { &*running.mixture.routes.get() };
        let gates = phase.part == Part::Gates;
        let m = running.rows_of(self.from);
        let (place, panels) = self.locate(running.nodes, phase, m, chunk);
        let Some(&expert) = routes.active.get(place) else {
            return;
        };
        let slots = routes.slots(expert);
        let Expert { gate, up, down } = &self.experts[expert];
        let parts = match gates {
            true => Parts::Gated {
                gate,
                up,
                activation: self.activation,
            },
            false => Parts::Store(down),
        };
        // SAFETY: no phase of a mixture but the last writes `from`, which is not `to` or only read before.
        let from = unsafe { running.read(self.from) };
        // SAFETY: the products are written in the phase of gates only, and read in that of downs.
        let products = unsafe { running.mixture.products.read() };
        if scratch.prepared != (scratch.serial, expert) {
            let k = if gates { from.cols() } else { self.inner() };
            let mut gathered = std::mem::take(&mut scratch.gathered);
            let to = resized(&mut gathered, slots.len() * k);
            for (to, slot) in to.chunks_exact_mut(k).zip(slots.clone()) {
                to.copy_from_slice(match gates {
                    true => from.row(routes.rows[slot]),
                    false => &products.row(slot)[..k],
                });
            }
            let mut forms = Vec::new();
            for weights in [gate, up, down] {
                let format = weights.matrix.format();
                let form = Form::of(running.bound.matmul_of(format, slots.len()));
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
            let x = Rows::new(to, slots.len(), k);
            let norm = self.norm.as_ref().filter(|_| gates);
            activations::prepare_own(running.bound.elementwise, &forms, x, norm, scratch);
            scratch.gathered = gathered;
            scratch.prepared = (scratch.serial, expert);
        }
        let n = if gates { self.inner() } else { from.cols() };
        let cols = panels.start * LANES..n.min(panels.end * LANES);
        let view = if gates {
            &running.mixture.products
        } else {
            &running.mixture.results
        };
        // SAFETY: each chunk has the rows of an expert and columns of its own.
        let out = unsafe { view.part(slots.clone(), cols) };
        let Scratch {
            own,
            rows,
            more,
            tiles,
            ..
        } = scratch;
        let multiply = Multiply {
            bound: running.bound,
            m: slots.len(),
            panels,
            ready: &|form| own.ready(form),
        };
        multiply.output(parts, out, (rows, more), tiles);
    }
}

/// Runs of `size` panels and less that a node has of a matrix.
fn runs_of(nodes: &Nodes, node: usize, panels: usize, size: usize) -> usize {
    nodes.panels(panels, node).len().div_ceil(size)
}

/// Which rows go where.
#[derive(Default)]
struct Routes {
    used: usize,
    /// Row of each slot.
    rows: Vec<usize>,
    /// First slot of each expert, and the number of slots.
    starts: Vec<usize>,
    /// Experts that have slots, ascending.
    active: Vec<usize>,
    /// `[rows][used]`: slots of a row, by expert, and what their results are multiplied with.
    of_rows: Vec<(usize, f32)>,
}

impl Routes {
    fn choose(&mut self, logits: Rows<'_>, used: usize, normalize: bool) {
        let experts = logits.cols();
        self.used = used;
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        // First the expert stands where its slot will.
        self.of_rows.clear();
        let mut order: Vec<usize> = Vec::new();
        for row in 0..logits.rows() {
            let logits = logits.row(row);
            order.clear();
            order.extend(0..experts);
            // Of equals the first.
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let largest = logits[order[0]];
            let power = |expert: usize| (logits[expert] - largest).exp();
            let of = match normalize {
                true => &order[..used],
                false => &order[..],
            };
            let total: f32 = of.iter().map(|&expert| power(expert)).sum();
            let chosen = &mut order[..used];
            chosen.sort_unstable();
            for &expert in &*chosen {
                self.starts[expert + 1] += 1;
                self.of_rows.push((expert, power(expert) / total));
            }
        }
        self.active.clear();
        let counted = self.starts[1..].iter().enumerate();
        let active = counted.filter(|(_, slots)| **slots > 0);
        self.active.extend(active.map(|(expert, _)| expert));
        for expert in 0..experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        let mut next = self.starts.clone();
        self.rows.clear();
        self.rows.resize(self.of_rows.len(), 0);
        for (i, (place, _)) in self.of_rows.iter_mut().enumerate() {
            let slot = next[*place];
            next[*place] += 1;
            self.rows[slot] = i / used;
            *place = slot;
        }
    }

    fn slots(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    fn of(&self, row: usize) -> &[(usize, f32)] {
        &self.of_rows[row * self.used..][..self.used]
    }
}

/// Memory of mixtures, which follow each other.
#[derive(Default)]
pub(super) struct Room {
    routes: UnsafeCell<Routes>,
    products: Vec<f32>,
    results: Vec<f32>,
    /// Slots, and the widest product and result.
    shape: (usize, usize, usize),
}

impl Room {
    /// Makes room for whatever the operations need for `m` rows.
    pub fn reserve(&mut self, ops: &[&Op], m: usize) {
        self.shape = (0, 0, 0);
        for op in ops {
            if let Op::Mixture(mixture) = op {
                let n = mixture.experts[0].down.matrix.rows();
                let (slots, inner, outer) = self.shape;
                self.shape = (
                    slots.max(m * mixture.used),
                    inner.max(mixture.inner()),
                    outer.max(n),
                );
            }
        }
        let (slots, inner, outer) = self.shape;
        resized(&mut self.products, slots * inner);
        resized(&mut self.results, slots * outer);
    }

    pub fn shared(&mut self) -> SharedRoom<'_> {
        let (slots, inner, outer) = self.shape;
        SharedRoom {
            routes: &self.routes,
            products: RowsMut::new(&mut self.products[..slots * inner], slots, inner),
            results: RowsMut::new(&mut self.results[..slots * outer], slots, outer),
        }
    }
}

/// What the chunks of a mixture share.
pub(super) struct SharedRoom<'a> {
    routes: &'a UnsafeCell<Routes>,
    /// `[slots, inner]`.
    products: RowsMut<'a>,
    /// `[slots, n]`.
    results: RowsMut<'a>,
}

impl SharedRoom<'_> {
    /// Experts that rows have chosen.
    ///
    /// # Safety
    /// No chunk that chooses runs while what is returned lives.
    pub unsafe fn active(&self) -> &[usize] {
        // SAFETY: as the caller promises.
        &unsafe { &*self.routes.get() }.active
    }
}

// SAFETY: the routes are written by the single chunk of one phase and read in later ones; the views are `Sync`.
unsafe impl Sync for SharedRoom<'_> {}
