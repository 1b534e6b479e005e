//! The tile instructions of x86 in plain Rust, so that the algorithm built on them is tested on machines that do not have
//! them, and what they do to the last bit is written down.

use super::generic::attention::Products;
use super::generic::tile_matmul::{
    PairKernel, PairUnit, TileKernel, TileSums, TileUnit, TileWords,
};
use super::isa::TileIsa;
use super::portable::Portable;
use super::vector::LANES;
use half::bf16;

/// What AMX does with tiles of `bf16`, and AVX-512 with pairs of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EmulatedTiles {
    /// By `TDPBF16PS`.
    Tiles,
    /// By `VDPBF16PS`.
    Pairs,
}

impl TileUnit for EmulatedTiles {
    fn multiply<const A: usize>(
        self,
        a: [&[TileWords]; A],
        b: [&[TileWords]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        *sums = [[TileSums::ZERO; 2]; A];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sums) in sums.iter_mut().enumerate() {
                assert_eq!(a[i].len(), b[j].len());
                for (a, b) in a[i].iter().zip(b[j]) {
                    match self {
                        EmulatedTiles::Tiles => tdpbf16ps(sums, a, b),
                        EmulatedTiles::Pairs => vdpbf16ps(sums, a, b),
                    }
                }
            }
        }
    }
}

/// `TDPBF16PS`: within a tile, the products of the first of all pairs are summed in order, and those of the second; then
/// these two are added, and the result to what is there. Fused, rounded to nearest, and what is below the normal range
/// is zero, before and after every step.
///
/// **Source**: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3.
fn tdpbf16ps(sums: &mut TileSums, a: &TileWords, b: &TileWords) {
    for (sums, a) in sums.0.iter_mut().zip(&a.0) {
        for (n, sum) in sums.iter_mut().enumerate() {
            let mut halves = [0.0; 2];
            for (a, b) in a.as_chunks::<2>().0.iter().zip(&b.0) {
                for (j, half) in halves.iter_mut().enumerate() {
                    let (a, b) = (a[j].to_f32(), b[2 * n + j].to_f32());
                    *half = flushed(flushed(a).mul_add(flushed(b), *half));
                }
            }
            *sum = flushed(*sum + flushed(halves[0] + halves[1]));
        }
    }
}

/// [`add_pair`] for each pair in order.
fn vdpbf16ps(sums: &mut TileSums, a: &TileWords, b: &TileWords) {
    for (sums, a) in sums.0.iter_mut().zip(&a.0) {
        for (n, sum) in sums.iter_mut().enumerate() {
            for (a, b) in a.as_chunks().0.iter().zip(&b.0) {
                *sum = add_pair(*sum, *a, [b[2 * n], b[2 * n + 1]]);
            }
        }
    }
}

/// A lane of `VDPBF16PS`: the product of the second of a pair is added to what is there, then that of the first; the rest
/// as in [`tdpbf16ps`].
///
/// **Source**: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2.
fn add_pair(mut sum: f32, a: [bf16; 2], b: [bf16; 2]) -> f32 {
    for j in [1, 0] {
        let (a, b) = (a[j].to_f32(), b[j].to_f32());
        sum = flushed(flushed(a).mul_add(flushed(b), sum));
    }
    sum
}

/// `VDPBF16PS` in attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmulatedPairs;

impl Products<bf16> for EmulatedPairs {
    type Lanes = Portable;
    type Factor = [bf16; 2];
    type Factors = [bf16; LANES];
    type Elements = [[bf16; 2]; LANES];

    const DEPTH: usize = 2;
    const SUMS: usize = 8;
    const ZERO: Self::Factors = [bf16::ZERO; LANES];

    fn lanes(self) -> Portable {
        Portable
    }

    fn factor(self, x: &[f32]) -> [bf16; 2] {
        [x[0], x[1]].map(bf16::from_f32)
    }

    fn store(self, x: [f32; LANES], to: &mut Self::Factors) {
        *to = x.map(|x| bf16::from_f32(flushed(x)));
    }

    fn get(self, factors: &Self::Factors, i: usize) -> [bf16; 2] {
        [factors[2 * i], factors[2 * i + 1]]
    }

    fn load(self, first: &[bf16; LANES], last: &[bf16; LANES]) -> Self::Elements {
        std::array::from_fn(|i| [first[i], last[i]])
    }

    fn only(self, elements: Self::Elements, row: usize) -> Self::Elements {
        elements.map(|pair| std::array::from_fn(|j| if j == row { pair[j] } else { bf16::ZERO }))
    }

    fn add(
        self,
        mut sum: [f32; LANES],
        factor: [bf16; 2],
        elements: Self::Elements,
    ) -> [f32; LANES] {
        for (sum, pair) in sum.iter_mut().zip(elements) {
            *sum = add_pair(*sum, factor, pair);
        }
        sum
    }
}

/// Zero of the same sign for what is below the normal range.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

impl PairUnit for EmulatedTiles {
    type Lanes = Portable;

    fn lanes(self) -> Portable {
        Portable
    }

    fn store_pairs(self, a: [f32; LANES], b: [f32; LANES], to: &mut [bf16; 2 * LANES]) {
        for (to, (a, b)) in to.as_chunks_mut().0.iter_mut().zip(a.into_iter().zip(b)) {
            *to = [a, b].map(|x| bf16::from_f32(flushed(x)));
        }
    }

    fn store_row(self, a: [f32; LANES], b: [f32; LANES], to: &mut [bf16; 2 * LANES]) {
        for (to, x) in to.iter_mut().zip(a.into_iter().chain(b)) {
            *to = bf16::from_f32(flushed(x));
        }
    }
}

/// An emulated unit or a real one, for tests that run on both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Emulated(EmulatedTiles),
    Real(TileIsa),
}

impl Unit {
    pub const EMULATED: [Self; 2] = [
        Unit::Emulated(EmulatedTiles::Tiles),
        Unit::Emulated(EmulatedTiles::Pairs),
    ];

    /// Units that give the same bits: an emulated one and, if this CPU has it, the real one.
    pub fn alike() -> [Vec<Self>; 2] {
        REAL.map(|(name, emulated)| {
            let real = TileIsa::detect(name).map(Unit::Real);
            [Unit::Emulated(emulated)].into_iter().chain(real).collect()
        })
    }

    pub fn run<K: TileKernel>(self, kernel: K) {
        match self {
            Unit::Emulated(unit) => kernel.run(unit),
            Unit::Real(isa) => isa.run(kernel),
        }
    }

    pub fn widen<K: PairKernel>(self, kernel: K) {
        match self {
            Unit::Emulated(unit) => kernel.run(unit),
            Unit::Real(isa) => isa.widen(kernel),
        }
    }
}

/// Tiers of the catalogue, and what each does to the last bit.
const REAL: [(&str, EmulatedTiles); 2] = [
    ("amx", EmulatedTiles::Tiles),
    ("avx512-bf16", EmulatedTiles::Pairs),
];

pub(crate) mod tests {
    use super::*;
    use crate::cpu::generic::elementwise::Activation;
    use crate::cpu::generic::float_matmul::{Blocks, Finish, Packed};
    use crate::cpu::generic::tile_matmul::{
        ROW_TILE, TileMatmul, TileOutput, TilePanels, TileRows, TileScratch, WriteTiles,
    };
    use crate::cpu::panel::{FloatElement, PanelBlock};
    use crate::matrix::{Matrix, WithPanels, with_panels};
    use crate::tensor::{Rows, RowsMut};
    use crate::{Format, KernelSet, Selection, Workers, catalog, reference};

    /// The tiles of one panel of a matrix.
    struct Write<'a> {
        unit: Unit,
        matrix: &'a Matrix,
        panel: usize,
        to: &'a mut [TileWords],
    }

    impl Write<'_> {
        fn write<P: TilePanels>(self, weights: P) {
            self.unit.widen(WriteTiles {
                weights,
                panel: self.panel,
                k: self.matrix.cols(),
                to: self.to,
            });
        }
    }

    impl WithPanels for Write<'_> {
        type Output = ();

        fn floats<E: FloatElement>(self) {
            let floats = Packed::<E>(self.matrix.floats());
            self.write(floats);
        }

        fn blocks<B: PanelBlock>(self) {
            let blocks = Blocks(self.matrix.blocks::<B>());
            self.write(blocks);
        }
    }

    fn source(unit: Unit, matrix: &Matrix) -> impl Fn(usize, &mut [TileWords]) {
        move |panel, to| {
            let write = Write {
                unit,
                matrix,
                panel,
                to,
            };
            with_panels(matrix.format(), write);
        }
    }

    fn tiles(x: &[f32], m: usize, k: usize) -> Vec<TileWords> {
        let x = Rows::new(x, m, k);
        let steps = k.div_ceil(32);
        let mut tiles = vec![TileWords::ZERO; m.div_ceil(ROW_TILE) * steps];
        for first in (0..m).step_by(ROW_TILE) {
            let to = &mut tiles[first / ROW_TILE * steps..][..steps];
            let x = x.slice(first..m.min(first + ROW_TILE));
            TileRows { x, to }.run(EmulatedTiles::Tiles);
        }
        tiles
    }

    fn multiply(unit: Unit, x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * w.rows()];
        unit.run(TileMatmul {
            output: TileOutput::Product(&source(unit, w), Finish { bias, add: false }),
            panels: 0..w.panels(),
            k: w.cols(),
            x: &tiles(x, m, w.cols()),
            scratch: &mut TileScratch::default(),
            out: RowsMut::new(&mut out, m, w.rows()),
        });
        out
    }

    fn gated(
        unit: Unit,
        x: &[f32],
        m: usize,
        [gate, up]: [&Matrix; 2],
        bias: [Option<&[f32]>; 2],
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * gate.rows()];
        unit.run(TileMatmul {
            output: TileOutput::Gated {
                gate: &source(unit, gate),
                up: &source(unit, up),
                bias,
                activation: Activation::Silu,
            },
            panels: 0..gate.panels(),
            k: gate.cols(),
            x: &tiles(x, m, gate.cols()),
            scratch: &mut TileScratch::default(),
            out: RowsMut::new(&mut out, m, gate.rows()),
        });
        out
    }

    /// A linear congruential generator (Knuth's MMIX).
    pub struct Random(pub u64);

    impl Random {
        pub fn next(&mut self) -> u32 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 32) as u32
        }

        /// Between -1 and 1.
        pub fn floats(&mut self, len: usize) -> Vec<f32> {
            let float = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (0..len).map(|_| float(self.next())).collect()
        }

        /// Blocks of any format, with scales that are numbers.
        fn weights(&mut self, format: Format, n: usize, k: usize) -> Vec<u8> {
            if format.is_float() {
                let mut bytes = vec![0; format.row_bytes(n * k).unwrap()];
                format.quantize(&self.floats(n * k), &mut bytes);
                return bytes;
            }
            // The upper byte of an `f16` below 60 is a number below 1.
            let bytes = format.row_bytes(k).unwrap() * n;
            (0..bytes).map(|_| (self.next() >> 24) as u8 % 60).collect()
        }

        pub fn matrix(&mut self, format: Format, n: usize, k: usize) -> (Matrix, Vec<f32>) {
            let bytes = self.weights(format, n, k);
            let mut weights = vec![0.0; n * k];
            format.dequantize(&bytes, &mut weights);
            (pack(format, n, k, &bytes), weights)
        }
    }

    pub fn pack(format: Format, n: usize, k: usize, bytes: &[u8]) -> Matrix {
        let set = KernelSet::bind(&Selection::best()).unwrap();
        let workers = Workers::new(1, &[]).unwrap();
        set.pack(&workers, format, n, k, bytes).unwrap()
    }

    /// Formats that the catalogue has a tile kernel for.
    fn formats() -> Vec<Format> {
        let catalog = catalog();
        let kernel = catalog.iter().find(|kernel| kernel.id.ends_with(".bf16"));
        let formats = kernel.map_or(&[][..], |kernel| &kernel.formats);
        formats
            .iter()
            .map(|f| Format::from_name(f).unwrap())
            .collect()
    }

    fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
        let block = format.block_len();
        let mut shapes = vec![
            (1, 1, block),
            (17, 33, 2 * block),
            (50, 16, block),
            (33, 70, block),
        ];
        if format.is_float() {
            shapes.extend([(3, 5, 0), (16, 40, 7), (20, 17, 67), (64, 32, 96)]);
        }
        shapes
    }

    #[test]
    fn products_are_within_the_stated_error() {
        let mut random = Random(1);
        for format in formats() {
            for (m, n, k) in shapes(format) {
                let x = random.floats(m * k);
                let (matrix, weights) = random.matrix(format, n, k);
                let bias = random.floats(n);
                if k == 0 {
                    for unit in Unit::EMULATED {
                        let out = multiply(unit, &x, m, &matrix, Some(&bias));
                        assert!(out.chunks_exact(n).all(|row| row == bias));
                    }
                    continue;
                }
                let magnitudes = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x.abs()).collect() };
                let expected = reference::matmul(&x, &weights, k);
                let size = reference::matmul(&magnitudes(&x), &magnitudes(&weights), k);
                for unit in Unit::EMULATED {
                    let out = multiply(unit, &x, m, &matrix, Some(&bias));
                    for (i, out) in out.iter().enumerate() {
                        let bias = f64::from(bias[i % n]);
                        let bound = (2f64.powf(-6.99) + k as f64 * 2f64.powi(-23)) * size[i];
                        let bound = bound + 2f64.powi(-24) * (bias.abs() + size[i]);
                        let error = (f64::from(*out) - expected[i] - bias).abs();
                        assert!(
                            error <= bound,
                            "{unit:?}: {format} {m}x{n}x{k} at {i}: {error} > {bound}"
                        );
                    }
                }
            }
        }
    }

    /// Bits, but for what is not a number.
    fn canonical(x: &[f32]) -> Vec<u32> {
        let bits = |x: &f32| {
            if x.is_nan() {
                f32::NAN.to_bits()
            } else {
                x.to_bits()
            }
        };
        x.iter().map(bits).collect()
    }

    /// Units that this CPU has, each with the emulated one.
    fn real_units() -> impl Iterator<Item = (Unit, Unit)> {
        Unit::alike()
            .into_iter()
            .filter_map(|units| match units[..] {
                [emulated, real] => {
                    println!("{real:?}: beside the emulated one");
                    Some((real, emulated))
                }
                _ => None,
            })
    }

    #[test]
    fn a_real_unit_gives_the_same_bits() {
        for (real, emulated) in real_units() {
            assert_same_products(real, emulated);
        }
    }

    fn assert_same_products(real: Unit, emulated: Unit) {
        let mut random = Random(2);
        for format in formats() {
            for (m, n, k) in shapes(format) {
                let x = random.floats(m * k);
                let (w, _) = random.matrix(format, n, k);
                let (up, _) = random.matrix(format, n, k);
                let bias = random.floats(n);
                let what = format!("{real:?}: {format} {m}x{n}x{k}");
                let run = |unit| canonical(&multiply(unit, &x, m, &w, None));
                assert_eq!(run(emulated), run(real), "{what}");
                let run = |unit| canonical(&gated(unit, &x, m, [&w, &up], [Some(&bias), None]));
                assert_eq!(run(emulated), run(real), "{what}, gated");
            }
        }
    }

    /// Of every size, some not numbers: what is below the normal range counts as zero, before and after.
    #[test]
    fn a_real_unit_gives_the_same_bits_for_any_operands() {
        for (real, emulated) in real_units() {
            assert_same_products_of_any_operands(real, emulated);
        }
    }

    fn assert_same_products_of_any_operands(real: Unit, emulated: Unit) {
        let mut random = Random(3);
        let (m, n, k) = (32, 32, 64);
        for round in 0..60 {
            // Powers of two in a range that grows, so that sums, products, or neither leave the normal numbers.
            let mut floats = |len: usize| -> Vec<f32> {
                let range = 4 + 8 * (round % 30);
                let float = |bits: u32, random: &mut Random| {
                    let exponent = 127 - range / 2 + random.next() % range;
                    f32::from_bits(bits & 0x807f_ffff | exponent.min(254) << 23)
                };
                let mut floats: Vec<f32> = (0..len)
                    .map(|_| float(random.next(), &mut random))
                    .collect();
                if round >= 30 {
                    for _ in 0..len / 200 {
                        let at = random.next() as usize % len;
                        floats[at] = f32::from_bits(random.next());
                    }
                }
                floats
            };
            let (x, w) = (floats(m * k), floats(n * k));
            let mut bytes = vec![0; 2 * w.len()];
            Format::BF16.quantize(&w, &mut bytes);
            let w = pack(Format::BF16, n, k, &bytes);
            let run = |unit| canonical(&multiply(unit, &x, m, &w, None));
            assert_eq!(run(emulated), run(real), "{real:?}: round {round}");
        }
    }
}
