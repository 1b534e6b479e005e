//! Peaks of reading: each thread reads a part of its own, straight, or in several streams and asking ahead as the
//! kernels do.

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
/// Floats that one turn of the loop reads of each stream: four lines of 64 bytes, which are as many sums under way.
const TURN: usize = 4 * LANES;
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
        let seconds = [Way::Straight, Way::Streams, Way::Ahead].map(|way| {
            fastest(runs, || {
                team.run(team.len(), &|chunk, _| {
                    isa.run(Read {
                        data: &data[chunk * part..][..part],
                        times,
                        way,
                    });
                });
            })
        });
        let seconds = seconds.into_iter().fold(f64::INFINITY, f64::min);
        Ok(ReadPeak {
            bytes: (data.len() * 4) as u64,
            threads: team.len() as u32,
            gb_per_second: (data.len() * 4 * times) as f64 / seconds / 1e9,
        })
    };
    teams.iter().map(peak).collect()
}

fn best() -> LaneIsa {
    LaneIsa::all()
        .last()
        .expect("every CPU has the portable lanes")
}

/// How to read: what helps far away is in the way near by, so the fastest counts.
#[derive(Clone, Copy)]
enum Way {
    /// From the first to the last.
    Straight,
    /// In several streams.
    Streams,
    /// In several streams, asking ahead.
    Ahead,
}

struct Read<'a> {
    /// A whole number of turns of every stream.
    data: &'a [f32],
    times: usize,
    way: Way,
}

impl LaneKernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.way {
            Way::Straight => self.read::<L, 1>(lanes, |_| {}),
            Way::Streams => self.read::<L, STREAMS>(lanes, |_| {}),
            Way::Ahead => {
                let ahead = streaming().ahead;
                self.read::<L, STREAMS>(lanes, |at| lanes.prefetch(at, ahead));
            }
        }
    }
}

impl Read<'_> {
    #[inline(always)]
    fn read<L: Lanes, const S: usize>(&self, lanes: L, ask: impl Fn(&[f32; LANES])) {
        let (vectors, _) = self.data.as_chunks::<LANES>();
        let (turns, _) = vectors.as_chunks::<{ TURN / LANES }>();
        let len = turns.len() / S;
        let mut sums = [[lanes.splat(0.0); TURN / LANES]; S];
        for _ in 0..self.times {
            let turns = black_box(turns);
            let streams: [_; S] = std::array::from_fn(|s| &turns[s * len..][..len]);
            for at in 0..len {
                for (stream, sums) in streams.iter().zip(&mut sums) {
                    for (vector, sum) in stream[at].iter().zip(sums) {
                        ask(vector);
                        *sum = lanes.add(*sum, lanes.load(vector));
                    }
                }
            }
        }
        for sum in sums.into_iter().flatten() {
            black_box(lanes.sum(sum));
        }
    }
}
