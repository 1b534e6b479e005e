//! Matrix products of every kind and format, and what brings activations into their form.

use super::{EDGES, Edge, Guarded, Same, int8_isas, lane_isas};
use crate::Format;
use crate::cpu::emulated_tiles::Unit;
use crate::cpu::emulated_tiles::tests::Random;
use crate::cpu::generic::elementwise::Activation;
use crate::cpu::generic::float_matmul::{
    Blocks, Finish, FloatMatmul, Packed, Panels, WidenPanel, Widened,
};
use crate::cpu::generic::int8_matmul::Int8Matmul;
use crate::cpu::generic::row_groups::{PackRows, QuantizeRows};
use crate::cpu::generic::span_matmul::{QuantizeSpans, RowSpan, SPAN, WeightSpan, WriteSpans};
use crate::cpu::generic::tile_matmul::{
    ROW_TILE, TileKernel, TileKind, TileMatmul, TileOutput, TilePanels, TileRows, TileScratch,
    TileSource, TileSums, TileUnit, TileWords, WriteTiles,
};
use crate::cpu::isa::{Int8Isa, LaneIsa, Streaming};
use crate::cpu::panel::{FloatElement, PanelBlock, QuantBlock};
use crate::cpu::span_tests::SpanUnit;
use crate::cpu::vector::LANES;
use crate::matrix::{Matrix, WithPanels, with_panels};
use crate::tensor::{Rows, RowsMut};
use std::ops::Range;

/// What multiplies, and its lanes for the activations.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Float(LaneIsa),
    Int8(Int8Isa, LaneIsa),
    Tiles(Unit),
    Gated(Unit),
    Spans(SpanUnit),
    GatedSpans(SpanUnit),
}

/// A product with some panels of a matrix, everything guarded.
#[derive(Clone)]
struct Product<'a> {
    kind: Kind,
    edge: Edge,
    matrix: &'a Matrix,
    panels: Range<usize>,
    m: usize,
    x: &'a [f32],
    /// Beyond the columns that are written, in every row.
    gap: usize,
    bias: Option<&'a [f32]>,
    streams: usize,
}

/// Stands in the gaps.
const UNTOUCHED: f32 = 7.0;

impl Product<'_> {
    fn k(&self) -> usize {
        self.matrix.cols()
    }

    fn cols(&self) -> usize {
        self.matrix.rows().min(self.panels.end * LANES) - self.panels.start * LANES
    }

    /// The rows, with the gap between them.
    fn x(&self) -> Guarded<f32> {
        let mut x = Vec::new();
        for row in 0..self.m {
            x.extend(&self.x[row * self.k()..][..self.k()]);
            if row + 1 < self.m {
                x.extend(vec![f32::NAN; self.gap]);
            }
        }
        Guarded::new(&x, self.edge)
    }

    fn rows<'x>(&self, x: &'x Guarded<f32>) -> Rows<'x> {
        Rows::with_stride(x, self.m, self.k(), self.k() + self.gap)
    }

    fn streaming(&self) -> Streaming {
        Streaming {
            ahead: 256,
            streams: self.streams,
        }
    }

    /// Calls `f` with guarded memory for the result and returns that without the gaps.
    fn written(&self, f: impl FnOnce(RowsMut<'_>, Finish<'_>)) -> Vec<f32> {
        let (cols, stride) = (self.cols(), self.cols() + self.gap);
        let len = (self.m * stride).saturating_sub(self.gap);
        let mut out = Guarded::new(&vec![UNTOUCHED; len], self.edge);
        let bias = self.bias.map(|bias| Guarded::new(bias, self.edge));
        let finish = Finish {
            bias: bias.as_deref(),
            add: false,
        };
        f(RowsMut::with_stride(&mut out, self.m, cols, stride), finish);
        let mut written = Vec::new();
        for row in out.chunks(stride.max(1)) {
            written.extend(&row[..cols]);
            assert!(row[cols..].iter().all(|x| *x == UNTOUCHED));
        }
        written
    }

    fn float<P: Panels>(&self, isa: LaneIsa, weights: P) -> Vec<f32> {
        let x = self.x();
        let mut packed = Guarded::new(&vec![f32::NAN; self.m * self.k()], self.edge);
        PackRows {
            x: self.rows(&x),
            largest: isa.rows(),
            to: &mut packed,
        }
        .run();
        self.written(|out, finish| {
            isa.run(FloatMatmul {
                weights,
                panels: self.panels.clone(),
                k: self.k(),
                x: &packed,
                finish,
                streaming: self.streaming(),
                out,
            });
        })
    }

    fn int8<B: PanelBlock>(&self, isa: Int8Isa, lanes: LaneIsa, weights: &[B]) -> Vec<f32> {
        let x = self.x();
        let blocks = vec![QuantBlock::ZERO; self.m * (self.k() / 32)];
        let mut packed = Guarded::new(&blocks, self.edge);
        lanes.run(QuantizeRows {
            x: self.rows(&x),
            largest: isa.rows(),
            to: &mut packed,
        });
        self.written(|out, finish| {
            isa.run(Int8Matmul {
                weights,
                panels: self.panels.clone(),
                k: self.k(),
                x: &packed,
                finish,
                streaming: self.streaming(),
                out,
            });
        })
    }

    fn tiles<P: TilePanels>(&self, unit: Unit, weights: P) -> Vec<f32> {
        let (x, steps) = (self.x(), self.k().div_ceil(32));
        let tiles = vec![TileWords::ZERO; self.m.div_ceil(ROW_TILE) * steps];
        let mut packed = Guarded::new(&tiles, self.edge);
        for first in (0..self.m).step_by(ROW_TILE) {
            let rows = first..self.m.min(first + ROW_TILE);
            unit.widen(TileRows {
                x: self.rows(&x).slice(rows),
                to: &mut packed[first / ROW_TILE * steps..][..steps],
            });
        }
        // Written into guarded memory, then to where the kernel wants it.
        let source = |panel, to: &mut [TileWords]| {
            let mut tiles = Guarded::new(to, self.edge);
            unit.widen(WriteTiles {
                weights,
                panel,
                k: self.k(),
                to: &mut tiles,
            });
            to.copy_from_slice(&tiles);
        };
        self.tiled(&packed, &source, |product| unit.run(product))
    }

    fn spans<B: PanelBlock>(&self, unit: SpanUnit, weights: &[B]) -> Vec<f32> {
        let (x, steps) = (self.x(), self.k().div_ceil(SPAN));
        let spans = vec![RowSpan::ZERO; self.m.div_ceil(ROW_TILE) * steps];
        let mut packed = Guarded::new(&spans, self.edge);
        for first in (0..self.m).step_by(ROW_TILE) {
            let rows = first..self.m.min(first + ROW_TILE);
            unit.lanes().run(QuantizeSpans {
                x: self.rows(&x).slice(rows),
                to: &mut packed[first / ROW_TILE * steps..][..steps],
            });
        }
        // Written into guarded memory, then to where the kernel wants it.
        let source = |panel, to: &mut [WeightSpan]| {
            let mut spans = Guarded::new(to, self.edge);
            unit.lanes().run(WriteSpans {
                weights: Blocks(weights),
                panel,
                k: self.k(),
                to: &mut spans,
            });
            to.copy_from_slice(&spans);
        };
        self.tiled(&packed, &source, |product| unit.run(product))
    }

    /// The product, or the gated one of the weights with themselves, in tiles of some kind.
    fn tiled<T: TileKind>(
        &self,
        x: &[T::Rows],
        source: TileSource<'_, T>,
        run: impl FnOnce(TileMatmul<'_, T>),
    ) -> Vec<f32> {
        self.written(|out, finish| {
            run(TileMatmul {
                output: match self.kind {
                    Kind::Gated(_) | Kind::GatedSpans(_) => TileOutput::Gated {
                        gate: source,
                        up: source,
                        bias: [finish.bias, None],
                        activation: Activation::GeluTanh,
                    },
                    _ => TileOutput::Product(source, finish),
                },
                panels: self.panels.clone(),
                k: self.k(),
                x,
                scratch: &mut TileScratch::default(),
                out,
            });
        })
    }
}

impl WithPanels for &Product<'_> {
    type Output = Vec<f32>;

    fn floats<E: FloatElement>(self) -> Vec<f32> {
        let weights = Guarded::new(self.matrix.floats::<E>(), self.edge);
        match self.kind {
            Kind::Float(isa) => self.float(isa, Packed(&weights)),
            Kind::Int8(..) | Kind::Spans(_) | Kind::GatedSpans(_) => {
                unreachable!("no integers in floats")
            }
            Kind::Tiles(unit) | Kind::Gated(unit) => self.tiles(unit, Packed(&weights)),
        }
    }

    fn blocks<B: PanelBlock>(self) -> Vec<f32> {
        let weights = Guarded::new(self.matrix.blocks::<B>(), self.edge);
        match self.kind {
            Kind::Float(isa) => {
                // Written into guarded memory, then to where the kernel wants it.
                let widen = |panel, to: &mut [[f32; LANES]]| {
                    let mut wide = Guarded::new(to, self.edge);
                    isa.run(WidenPanel {
                        blocks: Blocks(&weights),
                        panel,
                        to: &mut wide,
                    });
                    to.copy_from_slice(&wide);
                };
                self.float(isa, Widened(&widen))
            }
            Kind::Int8(isa, lanes) => self.int8(isa, lanes, &weights),
            Kind::Tiles(unit) | Kind::Gated(unit) => self.tiles(unit, Blocks(&weights)),
            Kind::Spans(unit) | Kind::GatedSpans(unit) => self.spans(unit, &weights),
        }
    }
}

/// Odd numbers of rows, panels and blocks.
fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
    let block = format.block_len();
    let mut shapes = vec![
        (1, 1, block),
        (1, 145, 2 * block),
        (2, 80, block),
        (7, 33, 3 * block),
        (16, 16, block),
        (39, 50, 2 * block),
    ];
    if format.is_float() {
        shapes.extend([(1, 17, 0), (5, 31, 7), (18, 35, 67), (0, 20, 9)]);
    }
    shapes
}

/// Every format and shape, with all panels and the last of them, with and without gaps and bias.
fn check(kinds: &[Kind], formats: impl Fn(Format) -> bool) {
    let mut random = Random(1);
    for format in Format::ALL.into_iter().filter(|f| formats(*f)) {
        for (m, n, k) in shapes(format) {
            let (matrix, _) = random.matrix(format, n, k);
            let (x, bias) = (random.floats(m * k), random.floats(n));
            let all = 0..matrix.panels();
            for panels in [all.clone(), all.end / 2..all.end] {
                for (gap, bias) in [(0, None), (5, Some(&bias[..]))] {
                    check_everywhere(
                        &Product {
                            kind: kinds[0],
                            edge: Edge::End,
                            matrix: &matrix,
                            panels: panels.clone(),
                            m,
                            x: &x,
                            gap,
                            bias,
                            streams: 1,
                        },
                        kinds,
                    );
                }
            }
        }
    }
}

/// At both edges, on every instruction set of a kind, with weights as one stream or several: the same bits.
fn check_everywhere(product: &Product<'_>, kinds: &[Kind]) {
    let mut same = Same(None);
    for edge in EDGES {
        for &kind in kinds {
            let streams: &[usize] = match kind {
                Kind::Int8(..) => &[1, 4],
                _ => &[1],
            };
            for &streams in streams {
                let product = Product {
                    kind,
                    edge,
                    streams,
                    ..product.clone()
                };
                let (format, m, panels) = (product.matrix.format(), product.m, &product.panels);
                let what = format!("{kind:?} {edge:?} {format} {m} rows, {panels:?}");
                same.check(&with_panels(format, &product), &what);
            }
        }
    }
}

#[test]
fn float_products_stay_within_their_memory() {
    let kinds: Vec<Kind> = lane_isas().into_iter().map(Kind::Float).collect();
    check(&kinds, |_| true);
}

#[test]
fn int8_products_stay_within_their_memory() {
    let kinds: Vec<Kind> = int8_isas()
        .into_iter()
        .flat_map(|isa| {
            let lanes = lane_isas().into_iter();
            lanes.map(move |lanes| Kind::Int8(isa, lanes))
        })
        .collect();
    check(&kinds, |format| !format.is_float());
}

#[test]
fn tile_products_stay_within_their_memory() {
    for units in Unit::alike() {
        for kind in [Kind::Tiles, Kind::Gated] {
            let kinds: Vec<Kind> = units.iter().copied().map(kind).collect();
            check(&kinds, |_| true);
        }
    }
}

#[test]
fn span_products_stay_within_their_memory() {
    for kind in [Kind::Spans, Kind::GatedSpans] {
        let kinds: Vec<Kind> = SpanUnit::all().into_iter().map(kind).collect();
        check(&kinds, |format| !format.is_float());
    }
}

/// One product of tiles that are all guarded.
struct Direct<'a, const A: usize> {
    a: [&'a [TileWords]; A],
    b: [&'a [TileWords]; 2],
    sums: &'a mut [[TileSums; 2]; A],
}

impl<const A: usize> TileKernel for Direct<'_, A> {
    fn run<U: TileUnit>(self, unit: U) {
        unit.multiply(self.a, self.b, self.sums);
    }
}

#[test]
fn units_stay_within_their_tiles() {
    fn multiplied<const A: usize>(unit: Unit, edge: Edge, steps: usize) -> Vec<f32> {
        let tiles: [Guarded<TileWords>; 4] = std::array::from_fn(|i| {
            let word = half::bf16::from_f32(i as f32 + 0.5);
            Guarded::new(&vec![TileWords([[word; 2 * LANES]; ROW_TILE]); steps], edge)
        });
        let untouched = TileSums([[f32::NAN; LANES]; ROW_TILE]);
        let mut sums = Guarded::new(&[[[untouched; 2]; A]], edge);
        unit.run(Direct::<A> {
            a: std::array::from_fn(|i| &tiles[i][..]),
            b: [&tiles[2][..], &tiles[3][..]],
            sums: &mut sums[0],
        });
        let sums = sums[0].as_flattened().iter();
        sums.flat_map(|sums| sums.0.as_flattened().to_vec())
            .collect()
    }
    for steps in [1, 2, 5] {
        for units in Unit::alike() {
            let (mut one, mut two) = (Same(None), Same(None));
            for unit in units {
                for edge in EDGES {
                    one.check(&multiplied::<1>(unit, edge, steps), "one row of tiles");
                    two.check(&multiplied::<2>(unit, edge, steps), "two rows of tiles");
                }
            }
        }
    }
}
