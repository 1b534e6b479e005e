//! Peaks of reading: each thread reads a part of its own, in several streams and asking ahead, as the kernels do.

use super::timing::fastest;
use super::{ReadPeak, Set};
use crate::cpu::isa::{LaneIsa, streaming};
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use crate::memory::{self, Region};
use crate::parallel::for_pieces;
use crate::workers::Workers;
use std::hint::black_box;
use std::io;

/// A core has requests for several streams under way at once; more than this gain nothing on the machines measured.
const STREAMS: usize = 4;
/// Floats that one turn of the loop reads of each stream: a cache line of 128 bytes or two of 64.
const TURN: usize = 2 * LANES;
/// Bytes that are read in one run, at least, by each thread.
const LEAST: usize = 4 << 20;

/// One working set, read by each of these teams.
///
/// # Errors
/// There is no memory for it.
pub fn peaks(teams: &[&Workers], set: Set, runs: usize) -> io::Result<Vec<ReadPeak>> {
    let peak = |team: &&Workers| {
        let bytes = match set {
            Set::Each(bytes) => bytes * team.len(),
            Set::Shared(bytes) => bytes,
        };
        let part = (bytes / team.len() / (STREAMS * TURN * 4)).max(1) * STREAMS * TURN;
        let mut region = Region::zeroed(part * team.len() * 4)?;
        let data = memory::cast_mut::<f32>(&mut region);
        // Zero pages that nobody has written are all the same page.
        for_pieces(team, data, part, |_, piece| piece.fill(1.0));
        let data = memory::cast::<f32>(&region);
        let times = LEAST.div_ceil(part * 4);
        let isa = best();
        let seconds = fastest(runs, || {
            team.run(team.len(), &|chunk, _| {
                isa.run(ReadStreams {
                    data: &data[chunk * part..][..part],
                    times,
                    prefetch: streaming().ahead,
                });
            });
        });
        Ok(ReadPeak {
            bytes: (data.len() * 4) as u64,
            threads: team.len() as u32,
            gb_per_second: (data.len() * 4 * times) as f64 / seconds / 1e9,
        })
    };
    teams.iter().map(peak).collect()
}

fn best() -> LaneIsa {
    let widest_first = ["avx512", "avx2", "portable"];
    let found = widest_first.into_iter().find_map(LaneIsa::detect);
    found.expect("every CPU has the portable lanes")
}

struct ReadStreams<'a> {
    /// A whole number of turns of every stream.
    data: &'a [f32],
    times: usize,
    prefetch: usize,
}

impl LaneKernel for ReadStreams<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (vectors, _) = self.data.as_chunks::<LANES>();
        let stream = vectors.len() / STREAMS;
        let mut sums = [lanes.splat(0.0); STREAMS];
        for _ in 0..self.times {
            let vectors = black_box(vectors);
            let streams: [_; STREAMS] = std::array::from_fn(|s| &vectors[s * stream..][..stream]);
            for at in (0..stream).step_by(TURN / LANES) {
                for (stream, sum) in streams.iter().zip(&mut sums) {
                    lanes.prefetch(&stream[at], self.prefetch);
                    lanes.prefetch(&stream[at + 1], self.prefetch);
                    let both = lanes.add(lanes.load(&stream[at]), lanes.load(&stream[at + 1]));
                    *sum = lanes.add(*sum, both);
                }
            }
        }
        for sum in sums {
            black_box(lanes.sum(sum));
        }
    }
}
