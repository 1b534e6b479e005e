//! Every operation of the lane layer on every instruction set, against the portable meaning, bit for bit.

use super::generic::exp::exp2;
use super::isa::LaneIsa;
use super::portable::Portable;
use super::vector::{LANES, LaneKernel, Lanes};
use half::{bf16, f16};
use std::array::from_fn;

/// All operations on the same operands; the results as bits.
#[derive(Clone, Copy)]
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
    words: [u16; LANES],
    bytes: [u8; 4 * LANES],
}

impl LaneKernel for Everything {
    type Output = Vec<(&'static str, Vec<u32>)>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Self::Output {
        let (a, b, c) = (l.load(&self.a), l.load(&self.b), l.load(&self.c));
        let halves = self.words.map(f16::from_bits);
        let brains = self.words.map(bf16::from_bits);
        let bytes = self.bytes.first_chunk().expect("64 >= 16");
        let quads = l.load_quads(&self.bytes);
        let small = l.field::<8>(quads, 127);
        let vectors = [
            ("splat", l.splat(self.a[3])),
            ("load_f16", l.load_f16(&halves)),
            ("load_bf16", l.load_bf16(&brains)),
            ("load_u8", l.load_u8(bytes)),
            ("load_i8", l.load_i8(bytes)),
            ("add", l.add(a, b)),
            ("sub", l.sub(a, b)),
            ("mul", l.mul(a, b)),
            ("div", l.div(a, b)),
            ("fma", l.fma(a, b, c)),
            ("max", l.max(a, b)),
            ("min", l.min(a, b)),
            ("abs", l.abs(a)),
            ("round", l.round(a)),
            ("power_of_two", l.power_of_two(small)),
            ("scale_by_power", l.scale_by_power(a, small)),
            (
                "scale_by_power, down",
                l.scale_by_power(a, l.sub(l.splat(0.0), l.min(small, l.splat(126.0)))),
            ),
            ("subtract_bits", l.subtract_bits(0x7EF3_11C7, a)),
            ("raised_field 0", l.raised_field::<0, 4>(quads)),
            ("raised_field 28", l.raised_field::<28, 4>(quads)),
            ("raised_field 8, byte", l.raised_field::<8, 8>(quads)),
            ("raised_field 24, byte", l.raised_field::<24, 8>(quads)),
            ("select_less", l.select_less(a, b, c, a)),
            ("swap_pairs", l.swap_pairs(a)),
            ("field 4", l.field::<4>(quads, 15)),
            ("field 24", l.field::<24>(quads, 255)),
            ("lookup 0", l.lookup::<0>(&self.b, quads)),
            ("lookup 28", l.lookup::<28>(&self.b, quads)),
            ("to_f32", l.to_f32(quads)),
            ("exp2", exp2(l, a)),
        ];
        let mut results = Vec::new();
        for (name, vector) in vectors {
            let mut lanes = [0.0; LANES];
            l.store(vector, &mut lanes);
            results.push((name, lanes.map(canonical).to_vec()));
        }
        let (mut half, mut brain) = ([f16::ZERO; LANES], [bf16::ZERO; LANES]);
        l.store_f16(a, &mut half);
        l.store_bf16(a, &mut brain);
        results.push(("store_f16", half.map(|x| canonical(x.to_f32())).to_vec()));
        results.push(("store_bf16", brain.map(|x| canonical(x.to_f32())).to_vec()));
        let mut signed = [0; LANES];
        l.store_i8(l.sub(small, l.splat(60.5)), &mut signed);
        results.push(("store_i8", signed.map(|x| x as u32).to_vec()));
        let mut quads = [0; 4 * LANES];
        let (half, twice) = (l.mul(small, l.splat(0.5)), l.add(small, small));
        l.store_quads([half, small, twice, half], &mut quads);
        results.push(("store_quads", quads.map(u32::from).to_vec()));
        results.push(("sum", vec![canonical(l.sum(a))]));
        results.push(("max_lane", vec![canonical(l.max_lane(small))]));
        results.push(("any_less", vec![l.any_less(a, b).into()]));
        results
    }
}

/// Bits, but for what is not a number: which of two payloads survives is no promise.
fn canonical(x: f32) -> u32 {
    if x.is_nan() {
        f32::NAN.to_bits()
    } else {
        x.to_bits()
    }
}

fn check(operands: Everything) {
    let expected = operands.run(Portable);
    for isa in LaneIsa::all() {
        let name = isa.name();
        for (found, expected) in isa.run(operands).iter().zip(&expected) {
            assert_eq!(
                found, expected,
                "{name}, a = {:?}, b = {:?}",
                operands.a, operands.b
            );
        }
    }
}

/// A linear congruential generator (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn operands(&mut self, float: fn(u32) -> f32) -> Everything {
        Everything {
            a: from_fn(|_| float(self.next())),
            b: from_fn(|_| float(self.next())),
            c: from_fn(|_| float(self.next())),
            words: from_fn(|_| self.next() as u16),
            bytes: from_fn(|_| self.next() as u8),
        }
    }
}

#[test]
fn any_bits_give_the_same_bits() {
    let mut random = Random(1);
    for _ in 0..2000 {
        check(random.operands(f32::from_bits));
    }
}

#[test]
fn ordinary_numbers_give_the_same_bits() {
    let mut random = Random(2);
    for _ in 0..2000 {
        check(random.operands(|bits| (bits as i32 as f32) / (1 << 27) as f32));
    }
}

#[test]
fn odd_numbers_give_the_same_bits() {
    const ODD: [f32; LANES] = [
        0.0,
        -0.0,
        0.5,
        -1.5,
        2.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-40,
        -1e-45,
        f32::MAX,
        -126.5,
        127.5,
        65520.0,
        5.96e-8,
    ];
    let mut random = Random(3);
    for shift in 0..LANES {
        let mut operands = random.operands(f32::from_bits);
        operands.a = ODD;
        operands.b = from_fn(|i| ODD[(i + shift) % LANES]);
        operands.c = from_fn(|i| ODD[(i + 2 * shift + 1) % LANES]);
        check(operands);
    }
}
