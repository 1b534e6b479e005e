//! The integer instructions of x86 and ARM in plain Rust, saturation and all, so that the algorithms built on them are
//! tested on machines that do not have them. The float lanes need no such twin: every instance gives the bits of `Portable`.

use super::generic::dot::{Dpbusd, Maddubs, bytes_by_maddubs, nibbles_by_maddubs};
use super::portable::Portable;
use super::vector::{Int8, LANES, Quads, Unpack};
use std::array::from_fn;

/// What AVX2 does.
#[derive(Clone, Copy)]
pub(crate) struct EmulatedMaddubs;

/// What AVX-512 VNNI does, and ARM's `usdot`.
#[derive(Clone, Copy)]
pub(crate) struct EmulatedVnni;

/// What ARM's `sdot` does, and NEON without it: there two products are added in 16 bits, which must hold them.
#[derive(Clone, Copy)]
pub(crate) struct EmulatedSdot;

macro_rules! emulated_quads {
    ($name:ty) => {
        impl Quads for $name {
            type Lanes = Portable;
            type Bytes = [u8; 64];

            fn lanes(self) -> Portable {
                Portable
            }

            fn load(self, from: &[u8; 64]) -> [u8; 64] {
                *from
            }

            fn store(self, x: [u8; 64], to: &mut [u8; 64]) {
                *to = x;
            }

            fn repeat(self, q: &[i8; 4]) -> [u8; 64] {
                Portable.repeat(q)
            }

            fn low_nibbles(self, x: [u8; 64]) -> [u8; 64] {
                Portable.low_nibbles(x)
            }

            fn high_nibbles(self, x: [u8; 64]) -> [u8; 64] {
                Portable.high_nibbles(x)
            }

            fn bits(self, x: [u8; 64], shift: i32, mask: u8) -> [u8; 64] {
                let moved = x.as_chunks().0.iter().flat_map(|pair| {
                    let word = u16::from_le_bytes(*pair);
                    let moved = if shift < 0 {
                        word << -shift
                    } else {
                        word >> shift
                    };
                    moved.to_le_bytes()
                });
                let mut bytes = [0; 64];
                bytes
                    .iter_mut()
                    .zip(moved)
                    .for_each(|(byte, moved)| *byte = moved & mask);
                bytes
            }

            fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
                Portable.or(a, b)
            }

            fn lookup(self, table: &[u8; 16], x: [u8; 64]) -> [u8; 64] {
                // An index with its sign bit set gives zero.
                x.map(|x| {
                    if x < 0x80 {
                        table[usize::from(x & 0x0f)]
                    } else {
                        0
                    }
                })
            }

            fn splat(self, x: i32) -> [i32; LANES] {
                [x; LANES]
            }

            fn add(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
                Quads::add(Portable, a, b)
            }
        }
    };
}

emulated_quads!(EmulatedMaddubs);
emulated_quads!(EmulatedVnni);
emulated_quads!(EmulatedSdot);

impl Dpbusd for EmulatedVnni {
    const ROWS: usize = 8;

    fn dpbusd(self, sum: [i32; LANES], w: [u8; 64], q: [u8; 64]) -> [i32; LANES] {
        from_fn(|lane| {
            let products =
                (4 * lane..4 * lane + 4).map(|i| i32::from(w[i]) * i32::from(q[i] as i8));
            sum[lane].wrapping_add(products.sum())
        })
    }
}

impl Dpbusd for EmulatedSdot {
    const ROWS: usize = 4;
    const CENTRE: i32 = 128;

    fn centred(self, w: [u8; 64]) -> [u8; 64] {
        w.map(|w| w ^ 0x80)
    }

    fn dpbusd(self, sum: [i32; LANES], w: [u8; 64], q: [u8; 64]) -> [i32; LANES] {
        from_fn(|lane| {
            let product = |i: usize| i16::from(w[i] as i8) * i16::from(q[i] as i8);
            let pair = |i| product(i).checked_add(product(i + 1)).expect("it fits");
            let four = i32::from(pair(4 * lane)) + i32::from(pair(4 * lane + 2));
            sum[lane].wrapping_add(four)
        })
    }
}

impl Maddubs for EmulatedMaddubs {
    type Pairs = [i16; 32];

    fn maddubs(self, w: [u8; 64], q: [u8; 64]) -> [i16; 32] {
        from_fn(|pair| {
            let products =
                (2 * pair..2 * pair + 2).map(|i| i32::from(w[i]) * i32::from(q[i] as i8));
            let sum: i32 = products.sum();
            sum.clamp(i16::MIN.into(), i16::MAX.into()) as i16
        })
    }

    fn add_pairs(self, a: [i16; 32], b: [i16; 32]) -> [i16; 32] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    fn widen(self, x: [i16; 32]) -> [i32; LANES] {
        from_fn(|i| i32::from(x[2 * i]) + i32::from(x[2 * i + 1]))
    }

    fn flip(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x ^ 0x80)
    }

    fn magnitude(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| (x as i8).unsigned_abs())
    }

    fn with_sign(self, q: [u8; 64], w: [u8; 64]) -> [u8; 64] {
        from_fn(|i| (q[i] as i8).wrapping_mul((w[i] as i8).signum()) as u8)
    }
}

impl Int8 for EmulatedMaddubs {
    const ROWS: usize = 4;

    fn dot_nibbles<const R: usize, const ZERO: i32>(
        self,
        weights: &[[u8; 64]; 4],
        q: [&[[i8; 4]; 8]; R],
        sums: [i32; R],
    ) -> [[i32; LANES]; R] {
        nibbles_by_maddubs::<Self, R, ZERO>(self, weights, q, sums)
    }

    fn dot_bytes<const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
        self,
        weights: &impl Unpack<P>,
        q: [&[[i8; 4]; P]; R],
        sums: [i32; R],
    ) -> [[i32; LANES]; R] {
        bytes_by_maddubs::<Self, R, P, BITS, ZERO>(self, weights, q, sums)
    }
}
