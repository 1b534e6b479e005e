//! Every quantised format on every instance, emulated ones too, against the meaning of its blocks.

use super::integers::{Halves, Integers, Joined3, Joined5, Joined6, Pairs};
use super::{F32Of, FloatElement, Multiplier, PanelBlock, QuantBlock};
use crate::Format;
use crate::cpu::emulated::{EmulatedMaddubs, EmulatedSdot, EmulatedVnni};
use crate::cpu::isa::{Int8Isa, LaneIsa};
use crate::cpu::vector::{Int8, Int8Kernel, LANES, LaneKernel, Lanes};
use crate::matrix::{WithPanels, with_panels};
use crate::memory::zeroed;
use std::array::from_fn;

/// A linear congruential generator (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u8
    }

    fn activations(&mut self) -> QuantBlock {
        let q = from_fn(|_| from_fn(|_| (self.next() as i8).max(-127)));
        activations(q, f32::from(self.next()) / 4096.0)
    }
}

fn activations(q: [[i8; 4]; 8], scale: f32) -> QuantBlock {
    let sum = |half: &[i8]| half.iter().map(|&q| i16::from(q)).sum();
    let (first, last) = q.as_flattened().split_at(16);
    QuantBlock::new(q, scale, [sum(first), sum(last)])
}

/// Runs a kernel on every instance there is, and says on which.
fn on_every_instance<K: Int8Kernel + Clone>(kernel: &K) -> Vec<(&'static str, K::Output)> {
    Int8Isa::all()
        .map(|isa| (isa.name(), isa.run(kernel.clone())))
        .chain([
            ("maddubs, emulated", kernel.clone().run(EmulatedMaddubs)),
            ("vnni, emulated", kernel.clone().run(EmulatedVnni)),
            ("sdot, emulated", kernel.clone().run(EmulatedSdot)),
        ])
        .collect()
}

fn numbers<I: Int8, const R: usize>(int8: I, vectors: [F32Of<I>; R]) -> Vec<[f32; LANES]> {
    let mut out = vec![[0.0; LANES]; R];
    for (vector, out) in vectors.into_iter().zip(&mut out) {
        int8.lanes().store(vector, out);
    }
    out
}

/// Dot products of integers less `ZERO`: of all 32 inputs and of each half.
#[derive(Clone)]
struct Dots<Q, const ZERO: i32> {
    q: Q,
    x: [QuantBlock; 4],
}

impl<Q: Halves, const ZERO: i32> Int8Kernel for Dots<Q, ZERO> {
    type Output = [Vec<[f32; LANES]>; 3];

    #[inline(always)]
    fn run<I: Int8>(self, int8: I) -> Self::Output {
        let (q, x) = (&self.q, &self.x);
        let dots = [
            q.dot::<I, 4, ZERO>(int8, x),
            q.dot_half::<I, 4, ZERO, 0>(int8, x),
            q.dot_half::<I, 4, ZERO, 1>(int8, x),
        ];
        dots.map(|dots| numbers(int8, dots.map(|dot| int8.lanes().to_f32(dot))))
    }
}

fn check_dots<Q: Integers + Halves, const ZERO: i32>(q: Q, x: [QuantBlock; 4]) {
    let plain = |inputs: std::ops::Range<usize>| -> Vec<[f32; LANES]> {
        let dot = |x: &QuantBlock, lane| {
            let products = inputs
                .clone()
                .map(|k| (i32::from(q.get(lane, k)) - ZERO) * i32::from(x.q.as_flattened()[k]));
            products.sum::<i32>() as f32
        };
        x.iter().map(|x| from_fn(|lane| dot(x, lane))).collect()
    };
    let expected = [plain(0..32), plain(0..16), plain(16..32)];
    for (instance, found) in on_every_instance(&Dots::<Q, ZERO> { q, x }) {
        assert_eq!(found, expected, "{instance}");
    }
}

fn check_integers<Q: Integers + Halves, const ZERO: i32>(bits: u32) {
    let largest = ((1u32 << bits) - 1) as u8;
    let mut random = Random(u64::from(bits));
    for round in 0..100 {
        let mut q: Q = zeroed();
        let mut expected = [[0; 32]; LANES];
        for (lane, expected) in expected.iter_mut().enumerate() {
            *expected = match round {
                0 => [largest; 32],
                1 => [0; 32],
                _ => from_fn(|_| random.next() & largest),
            };
            q.set(lane, expected);
        }
        for (lane, expected) in expected.iter().enumerate() {
            let found: [u8; 32] = from_fn(|k| q.get(lane, k));
            assert_eq!(&found, expected, "{bits} bits, lane {lane}");
        }
        let x = match round {
            0 | 1 => [127, -127, 0, 1].map(|q| activations([[q; 4]; 8], 1.0)),
            _ => from_fn(|_| random.activations()),
        };
        check_dots::<Q, ZERO>(q, x);
        check_dots::<Q, 0>(q, x);
    }
}

#[test]
fn integers_of_every_width_are_multiplied_exactly() {
    check_integers::<Pairs, 2>(2);
    check_integers::<Joined3, 4>(3);
    check_integers::<Joined5, 16>(5);
    check_integers::<Joined6, 32>(6);
}

/// One block of each of sixteen rows of a format.
struct Blocks {
    format: Format,
    bytes: [Vec<u8>; LANES],
}

impl Blocks {
    /// Random bytes, but for scales that would make numbers too large to add up.
    fn new(format: Format, random: &mut Random) -> Self {
        let mut block = || loop {
            let bytes: Vec<u8> = (0..format.block_bytes()).map(|_| random.next()).collect();
            let blocks = Self {
                format,
                bytes: from_fn(|_| bytes.clone()),
            };
            if blocks.elements(0).iter().all(|w| w.abs() < 1e9) {
                return bytes;
            }
        };
        Self {
            format,
            bytes: from_fn(|_| block()),
        }
    }

    fn elements(&self, lane: usize) -> Vec<f32> {
        let mut elements = vec![0.0; self.format.block_len()];
        self.format.dequantize(&self.bytes[lane], &mut elements);
        elements
    }
}

/// Checks the panel block that the blocks make.
struct CheckPanel<'a> {
    blocks: &'a Blocks,
    random: &'a mut Random,
}

impl WithPanels for CheckPanel<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {}

    fn blocks<B: PanelBlock>(self) {
        let format = self.blocks.format;
        assert_eq!(32 * B::GROUPS, format.block_len(), "{format}");
        let mut panel: B = zeroed();
        for (lane, bytes) in self.blocks.bytes.iter().enumerate() {
            panel.pack(lane, bytes);
        }
        let widened: Vec<_> = LaneIsa::all()
            .map(|isa| (isa.name(), isa.run(Widen(panel))))
            .collect();
        for lane in 0..LANES {
            for (k, expected) in self.blocks.elements(lane).into_iter().enumerate() {
                let at = format!("{format}, lane {lane}, input {k}");
                let bits = |x: f32| (x.to_bits(), x);
                assert_eq!(bits(panel.element(lane, k)), bits(expected), "{at}");
                for (name, widened) in &widened {
                    assert_eq!(bits(widened[k][lane]), bits(expected), "{name}, {at}");
                }
            }
        }
        let x = (0..B::GROUPS).map(|_| from_fn(|_| self.random.activations()));
        let x = x.collect();
        let outputs = on_every_instance(&Accumulate { panel, x });
        for (name, [output, by_bytes]) in &outputs {
            assert_eq!(output, &outputs[0].1[0], "{format} on {name}");
            assert_eq!(by_bytes, output, "{format} on {name}, by bytes");
        }
    }
}

struct Widen<B>(B);

impl<B: PanelBlock> LaneKernel for Widen<B> {
    type Output = Vec<[f32; LANES]>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Output {
        let mut to = vec![[f32::NAN; LANES]; 32 * B::GROUPS];
        self.0.widen(lanes, &mut to);
        to
    }
}

#[derive(Clone)]
struct Accumulate<B> {
    panel: B,
    x: Vec<[QuantBlock; 4]>,
}

impl<B: PanelBlock> Int8Kernel for Accumulate<B> {
    type Output = [Vec<[u32; LANES]>; 2];

    #[inline(always)]
    fn run<I: Int8>(self, int8: I) -> Self::Output {
        let mut loose: B::Loose = zeroed();
        self.panel.loosen(int8, &mut loose);
        [self.sums(int8, &self.panel), self.sums(int8, &loose)]
    }
}

impl<B> Accumulate<B> {
    #[inline(always)]
    fn sums<I: Int8>(&self, int8: I, weights: &impl Multiplier) -> Vec<[u32; LANES]> {
        let mut sums = [int8.lanes().splat(0.0); 4];
        weights.accumulate(int8, &self.x, &mut sums);
        let sums = numbers(int8, sums);
        sums.into_iter().map(|sum| sum.map(f32::to_bits)).collect()
    }
}

#[test]
fn every_format_is_the_same_on_every_instance() {
    for format in Format::ALL {
        let mut random = Random(7);
        for _ in 0..20 {
            let blocks = Blocks::new(format, &mut random);
            let random = &mut random;
            with_panels(
                format,
                CheckPanel {
                    blocks: &blocks,
                    random,
                },
            );
        }
    }
}
