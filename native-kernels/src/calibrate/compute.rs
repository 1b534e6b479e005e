//! Peaks of arithmetic: independent chains of the instructions that the kernels are made of.

use super::ComputePeak;
use super::timing::{fastest, repetitions, seconds};
use crate::catalog;
use crate::cpu::generic::span_matmul::{RowSpan, SPAN, SpanKernel, Spans};
use crate::cpu::generic::tile_matmul::{
    ROW_TILE, TileKernel, TileKind, TileProduct, TileSums, TileUnit, TileWords,
};
use crate::cpu::isa::{Int8Isa, LaneIsa, SpanIsa, TileIsa};
use crate::cpu::vector::{Int8, Int8Kernel, LANES, LaneKernel, Lanes};
use crate::workers::Workers;
use std::hint::black_box;

/// A chain of operations that each wait for the one before: what a thread does at the pace of its clock.
#[derive(Debug)]
pub struct Clock {
    /// Turns that take about two milliseconds.
    rounds: usize,
    /// Seconds of every sample.
    samples: Vec<f64>,
}

impl Clock {
    /// Three shifts and three exclusive ors (Marsaglia's xorshift), of one cycle each.
    const OPERATIONS: usize = 6;

    /// Finds how long a chain must be.
    pub fn new() -> Self {
        Self {
            rounds: repetitions(Self::chain),
            samples: Vec::new(),
        }
    }

    /// Lets every worker run a chain. The sample is as slow as the slowest of them.
    pub fn sample(&mut self, workers: &Workers) {
        let rounds = self.rounds;
        self.samples.push(seconds(|| {
            workers.run(workers.len(), &|_, _| Self::chain(rounds));
        }));
    }

    /// Operations of one thread, in 10^9 a second, in the fastest sample.
    pub fn ghz(&self) -> f64 {
        (Self::OPERATIONS * self.rounds) as f64 / self.fastest() / 1e9
    }

    /// Share of samples that took a quarter longer than the fastest: another process had one of the CPUs.
    pub fn disturbed(&self) -> f64 {
        let limit = 1.25 * self.fastest();
        let slow = self.samples.iter().filter(|&&sample| sample > limit);
        slow.count() as f64 / self.samples.len() as f64
    }

    fn fastest(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn chain(rounds: usize) {
        let mut x = black_box(1u64);
        for _ in 0..rounds {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        black_box(x);
    }
}

/// Every tier of the catalogue that this CPU has, on each of these teams.
pub fn peaks(teams: &[&Workers], runs: usize) -> Vec<ComputePeak> {
    let mut peaks = Vec::new();
    for tier in tiers() {
        let mut add = |operation: &str, work: &(dyn Fn(usize) -> usize + Sync)| {
            peaks.extend(teams.iter().map(|team| ComputePeak {
                tier: tier.clone(),
                operation: operation.to_owned(),
                threads: team.len() as u32,
                gops: gops(team, runs, work),
            }));
        };
        if let Some(isa) = LaneIsa::detect(&tier) {
            add("f32-fma", &|rounds| isa.run(FmaChains { rounds }));
        }
        if let Some(isa) = Int8Isa::detect(&tier) {
            add("int8-dot", &|rounds| isa.run(ByteDots { rounds }));
            add("int4-dot", &|rounds| isa.run(NibbleDots { rounds }));
        }
        if let Some(isa) = TileIsa::detect(&tier) {
            add("bf16-tile", &|rounds| {
                isa.run(TileProducts { rounds });
                TileProducts::OPERATIONS
            });
        }
        if let Some(isa) = SpanIsa::detect(&tier) {
            add("int8-tile", &|rounds| {
                isa.run(SpanProducts { rounds });
                SpanProducts::OPERATIONS
            });
        }
    }
    peaks
}

/// The instruction sets that ids of matrix products name, each once.
fn tiers() -> Vec<String> {
    let mut tiers = Vec::new();
    for kernel in catalog().iter().filter(|kernel| kernel.op == "matmul") {
        let tier = kernel.id.split('.').nth(1).unwrap_or_default().to_owned();
        if !tiers.contains(&tier) {
            tiers.push(tier);
        }
    }
    tiers
}

/// `work` does so many rounds and gives the operations of one.
fn gops(team: &Workers, runs: usize, work: &(dyn Fn(usize) -> usize + Sync)) -> f64 {
    let of_round = work(1);
    let rounds = repetitions(|rounds| {
        work(rounds);
    });
    let time = fastest(runs, || {
        team.run(team.len(), &|_, _| {
            work(rounds);
        });
    });
    (of_round * rounds * team.len()) as f64 / time / 1e9
}

struct FmaChains {
    rounds: usize,
}

impl LaneKernel for FmaChains {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> usize {
        // Enough chains to cover the latency of every unit (4 cycles of 2), and few enough for the registers.
        if L::ACCUMULATORS >= 12 {
            fma_chains::<L, 12>(lanes, self.rounds)
        } else {
            fma_chains::<L, 5>(lanes, self.rounds)
        }
    }
}

#[inline(always)]
fn fma_chains<L: Lanes, const CHAINS: usize>(lanes: L, rounds: usize) -> usize {
    // `x / 2 + 1` stays near 2: no number on the way is slow.
    let (half, one) = (lanes.splat(black_box(0.5)), lanes.splat(black_box(1.0)));
    let mut chains = [lanes.splat(black_box(1.5)); CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = lanes.fma(*chain, half, one);
        }
    }
    for chain in chains {
        black_box(lanes.sum(chain));
    }
    2 * LANES * CHAINS
}

/// Inputs of one block of weights.
const INPUTS: usize = 32;

/// Rows that the compiler must not know to be alike: it would compute one of them.
fn activations<const R: usize>() -> [[[i8; 4]; INPUTS / 4]; R] {
    black_box([[[5; 4]; INPUTS / 4]; R])
}

struct ByteDots {
    rounds: usize,
}

impl Int8Kernel for ByteDots {
    type Output = usize;

    #[inline(always)]
    fn run<I: Int8>(self, int8: I) -> usize {
        if I::ROWS >= 8 {
            byte_dots::<I, 8>(int8, self.rounds)
        } else {
            byte_dots::<I, 4>(int8, self.rounds)
        }
    }
}

#[inline(always)]
fn byte_dots<I: Int8, const R: usize>(int8: I, rounds: usize) -> usize {
    let (mut weights, q, sums) = ([[3u8; 64]; 8], activations(), black_box([160; R]));
    for _ in 0..rounds {
        // What might have changed must be computed again; the sums are stored and forgotten.
        let weights = &*black_box(&mut weights);
        black_box(int8.dot_bytes::<R, 8, 8, 128>(weights, q.each_ref(), sums));
    }
    2 * INPUTS * LANES * R
}

struct NibbleDots {
    rounds: usize,
}

impl Int8Kernel for NibbleDots {
    type Output = usize;

    #[inline(always)]
    fn run<I: Int8>(self, int8: I) -> usize {
        if I::ROWS >= 8 {
            nibble_dots::<I, 8>(int8, self.rounds)
        } else {
            nibble_dots::<I, 4>(int8, self.rounds)
        }
    }
}

#[inline(always)]
fn nibble_dots<I: Int8, const R: usize>(int8: I, rounds: usize) -> usize {
    let (mut weights, q, sums) = ([[0x53u8; 64]; 4], activations(), black_box([160; R]));
    for _ in 0..rounds {
        let weights = &*black_box(&mut weights);
        black_box(int8.dot_nibbles::<R, 8>(weights, q.each_ref(), sums));
    }
    2 * INPUTS * LANES * R
}

struct TileProducts {
    rounds: usize,
}

impl TileProducts {
    /// Tiles in a row: those of both sides are two thirds of a first cache of 48 KiB.
    const STEPS: usize = 16;
    /// Operations of a round: two tiles by two, each of so many inputs.
    const OPERATIONS: usize = 2 * (2 * ROW_TILE) * (2 * LANES) * (Self::STEPS * 2 * LANES);
}

impl TileKernel for TileProducts {
    #[inline(always)]
    fn run<U: TileUnit>(self, unit: U) {
        // Zeros are multiplied as fast as anything else.
        let tiles = black_box([[TileWords::ZERO; Self::STEPS]; 2]);
        let mut sums = [[TileSums::ZERO; 2]; 2];
        let [a, b] = tiles.each_ref().map(|tiles| &tiles[..]);
        for _ in 0..self.rounds {
            unit.multiply([a, a], [b, b], &mut sums);
        }
        black_box(sums);
    }
}

struct SpanProducts {
    rounds: usize,
}

impl SpanProducts {
    /// Operations of a round: two tiles by two, each of a span.
    const OPERATIONS: usize = 2 * (2 * ROW_TILE) * (2 * LANES) * SPAN;
}

impl SpanKernel for SpanProducts {
    #[inline(always)]
    fn run<U: TileProduct<Spans>>(self, unit: U) {
        let (rows, weights) = black_box(([RowSpan::ZERO], [Spans::NO_WEIGHTS]));
        let mut sums = [[TileSums::ZERO; 2]; 2];
        for _ in 0..self.rounds {
            unit.multiply(SPAN, [&rows, &rows], [&weights, &weights], &mut sums);
        }
        black_box(sums);
    }
}
