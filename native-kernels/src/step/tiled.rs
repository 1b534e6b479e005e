//! Instruction sets that multiply tiles: how weights and activations get into the tiles of each.

use super::activations::{Form, Ready};
use crate::cpu::generic::float_matmul::{Blocks, Packed};
use crate::cpu::generic::span_matmul::{RowSpan, Spans, WeightSpan};
use crate::cpu::generic::tile_matmul::{
    Bf16, TileKind, TileMatmul, TilePanels, TileScratch, TileWords, WriteTiles,
};
use crate::cpu::isa::{SpanIsa, TileIsa};
use crate::cpu::panel::{FloatElement, PanelBlock};
use crate::matrix::{Matrix, WithPanels, with_panels};

/// Memory of one worker for tiles of every kind.
#[derive(Default)]
pub(super) struct Tiles {
    words: TileScratch<Bf16>,
    spans: TileScratch<Spans>,
}

/// An instruction set with products of tiles of a kind.
pub(super) trait Tiled: Copy {
    type Kind: TileKind;

    /// The form that activations have.
    fn form(self) -> Form;
    fn rows(ready: Ready<'_>) -> &[<Self::Kind as TileKind>::Rows];
    fn scratch(tiles: &mut Tiles) -> &mut TileScratch<Self::Kind>;
    /// Brings one panel into tiles.
    fn write(self, matrix: &Matrix, panel: usize, to: &mut [<Self::Kind as TileKind>::Weights]);
    fn run(self, product: TileMatmul<'_, Self::Kind>);
}

impl Tiled for TileIsa {
    type Kind = Bf16;

    fn form(self) -> Form {
        Form::Tiles(self)
    }

    fn rows(ready: Ready<'_>) -> &[TileWords] {
        ready.tiles
    }

    fn scratch(tiles: &mut Tiles) -> &mut TileScratch<Bf16> {
        &mut tiles.words
    }

    fn write(self, matrix: &Matrix, panel: usize, to: &mut [TileWords]) {
        let format = matrix.format();
        let write = WriteWords {
            isa: self,
            matrix,
            panel,
            to,
        };
        with_panels(format, write);
    }

    fn run(self, product: TileMatmul<'_, Bf16>) {
        TileIsa::run(self, product);
    }
}

struct WriteWords<'a> {
    isa: TileIsa,
    matrix: &'a Matrix,
    panel: usize,
    to: &'a mut [TileWords],
}

impl WriteWords<'_> {
    fn write<P: TilePanels>(self, weights: P) {
        self.isa.widen(WriteTiles {
            weights,
            panel: self.panel,
            k: self.matrix.cols(),
            to: self.to,
        });
    }
}

impl WithPanels for WriteWords<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        let matrix = self.matrix;
        self.write(Packed::<E>(matrix.floats()));
    }

    fn blocks<B: PanelBlock>(self) {
        let matrix = self.matrix;
        self.write(Blocks::<B>(matrix.blocks()));
    }
}

impl Tiled for SpanIsa {
    type Kind = Spans;

    fn form(self) -> Form {
        Form::Spans
    }

    fn rows(ready: Ready<'_>) -> &[RowSpan] {
        ready.spans
    }

    fn scratch(tiles: &mut Tiles) -> &mut TileScratch<Spans> {
        &mut tiles.spans
    }

    fn write(self, matrix: &Matrix, panel: usize, to: &mut [WeightSpan]) {
        matrix.write_spans(self.lanes(), panel, to);
    }

    fn run(self, product: TileMatmul<'_, Spans>) {
        SpanIsa::run(self, product);
    }
}
