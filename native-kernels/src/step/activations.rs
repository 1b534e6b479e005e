//! Activations in the form that a product reads: prepared once for each worker, or once for all of them.

use super::rows::{Norm, resized};
use super::shared::SharedSlice;
use super::{Op, Scratch};
use crate::bind::{Bound, MatmulKernel};
use crate::cpu::generic::elementwise::RmsNorm;
use crate::cpu::generic::row_groups::{PackRows, QuantizeRows};
use crate::cpu::generic::span_matmul::{QuantizeSpans, RowSpan, SPAN};
use crate::cpu::generic::tile_matmul::{ROW_TILE, TileRows, TileWords};
use crate::cpu::isa::{LaneIsa, TileIsa};
use crate::cpu::panel::QuantBlock;
use crate::tensor::{Rows, RowsMut};
use std::ops::Range;

/// Rows that are prepared together: a multiple of every group of rows and of a tile.
pub(super) const RUN: usize = 16;

/// What a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `f32` in groups of at most so many rows.
    Floats(usize),
    /// Signed bytes in groups of at most so many rows.
    Quants(usize),
    /// `bf16` tiles of 16 rows x 32 inputs.
    Tiles(TileIsa),
    /// Signed bytes of 16 rows x 256 inputs.
    Spans,
}

impl Form {
    pub fn of(kernel: MatmulKernel) -> Self {
        match kernel {
            MatmulKernel::Float(isa) => Form::Floats(isa.rows()),
            MatmulKernel::Int8(isa) => Form::Quants(isa.rows()),
            MatmulKernel::Tiles(isa) => Form::Tiles(isa),
            MatmulKernel::Spans(_) => Form::Spans,
        }
    }
}

/// Activations of the rows of a step, in every form that is needed.
#[derive(Default)]
pub(super) struct Prepared {
    slots: Vec<Slot>,
}

struct Slot {
    form: Form,
    floats: Vec<f32>,
    quants: Vec<QuantBlock>,
    tiles: Vec<TileWords>,
    spans: Vec<RowSpan>,
}

/// Prepared activations, to read.
#[derive(Clone, Copy)]
pub(super) struct Ready<'a> {
    pub floats: &'a [f32],
    pub quants: &'a [QuantBlock],
    pub tiles: &'a [TileWords],
    pub spans: &'a [RowSpan],
}

/// A run of rows, to write: in one form, the others are empty.
#[derive(Default)]
struct Piece<'a> {
    floats: &'a mut [f32],
    quants: &'a mut [QuantBlock],
    tiles: &'a mut [TileWords],
    spans: &'a mut [RowSpan],
}

/// Elements that `rows` rows of `k` inputs take.
fn elements(form: Form, rows: usize, k: usize) -> usize {
    match form {
        Form::Floats(_) => rows * k,
        Form::Quants(_) => rows * (k / 32),
        Form::Tiles(_) => rows.div_ceil(ROW_TILE) * k.div_ceil(32),
        Form::Spans => rows.div_ceil(ROW_TILE) * k.div_ceil(SPAN),
    }
}

impl Prepared {
    /// Makes room for `rows` rows of `k` inputs.
    fn reserve_one(&mut self, form: Form, rows: usize, k: usize) {
        if !self.slots.iter().any(|slot| slot.form == form) {
            self.slots.push(Slot {
                form,
                floats: Vec::new(),
                quants: Vec::new(),
                tiles: Vec::new(),
                spans: Vec::new(),
            });
        }
        let len = elements(form, rows, k);
        let slot = self.slots.iter_mut().find(|slot| slot.form == form);
        let slot = slot.expect("it was just made");
        match form {
            Form::Floats(_) if slot.floats.len() < len => slot.floats.resize(len, 0.0),
            Form::Quants(_) if slot.quants.len() < len => slot.quants.resize(len, QuantBlock::ZERO),
            Form::Tiles(_) if slot.tiles.len() < len => slot.tiles.resize(len, TileWords::ZERO),
            Form::Spans if slot.spans.len() < len => slot.spans.resize(len, RowSpan::ZERO),
            _ => {}
        }
    }

    /// Makes room for whatever the operations need for `rows` rows.
    pub fn reserve(&mut self, ops: &[&Op], bound: &Bound, rows: usize) {
        for op in ops {
            if let Op::Linear(linear) = op {
                for form in linear.forms(bound, rows) {
                    self.reserve_one(form, rows, linear.inputs());
                }
            }
        }
    }

    /// What was prepared in this form.
    pub fn ready(&self, form: Form) -> Ready<'_> {
        let slot = self.slots.iter().find(|slot| slot.form == form);
        let slot = slot.expect("there is room for every form that is used");
        Ready {
            floats: &slot.floats,
            quants: &slot.quants,
            tiles: &slot.tiles,
            spans: &slot.spans,
        }
    }
}

/// Prepares all rows of `x` for one worker.
pub(super) fn prepare_own(
    lanes: LaneIsa,
    forms: &[Form],
    x: Rows<'_>,
    norm: Option<&Norm>,
    scratch: &mut Scratch,
) {
    let k = x.cols();
    for &form in forms {
        scratch.own.reserve_one(form, x.rows(), k);
    }
    for first in (0..x.rows()).step_by(RUN) {
        let rows = first..x.rows().min(first + RUN);
        let run = normed(lanes, x.slice(rows.clone()), norm, &mut scratch.rows);
        for &form in forms {
            let slots = &mut scratch.own.slots;
            let slot = slots.iter_mut().find(|slot| slot.form == form);
            let slot = slot.expect("room was just made");
            let range = elements(form, first, k)..elements(form, rows.end, k);
            let mut piece = Piece::default();
            match form {
                Form::Floats(_) => piece.floats = &mut slot.floats[range],
                Form::Quants(_) => piece.quants = &mut slot.quants[range],
                Form::Tiles(_) => piece.tiles = &mut slot.tiles[range],
                Form::Spans => piece.spans = &mut slot.spans[range],
            }
            write(lanes, form, run, piece);
        }
    }
}

/// Prepares the rows of one run for everybody.
///
/// # Safety
/// Nobody else reads or writes these rows in `shared`.
pub(super) unsafe fn prepare_shared(
    lanes: LaneIsa,
    forms: &[Form],
    (x, rows): (Rows<'_>, Range<usize>),
    norm: Option<&Norm>,
    scratch: &mut Vec<f32>,
    shared: &Shared<'_>,
) {
    let k = x.cols();
    let run = normed(lanes, x.slice(rows.clone()), norm, scratch);
    for &form in forms {
        let range = elements(form, rows.start, k)..elements(form, rows.end, k);
        // SAFETY: as the caller promises.
        let piece = unsafe { shared.piece(form, range) };
        write(lanes, form, run, piece);
    }
}

/// The rows, normalised into `scratch` if there is a norm.
fn normed<'a>(
    lanes: LaneIsa,
    x: Rows<'a>,
    norm: Option<&Norm>,
    scratch: &'a mut Vec<f32>,
) -> Rows<'a> {
    let Some(norm) = norm else { return x };
    let (rows, k) = (x.rows(), x.cols());
    let to = resized(scratch, rows * k);
    lanes.run(RmsNorm {
        x,
        weight: &norm.weight,
        eps: norm.eps,
        out: RowsMut::new(to, rows, k),
    });
    Rows::new(to, rows, k)
}

fn write(lanes: LaneIsa, form: Form, x: Rows<'_>, to: Piece<'_>) {
    match form {
        Form::Floats(largest) => PackRows {
            x,
            largest,
            to: to.floats,
        }
        .run(),
        Form::Quants(largest) => lanes.run(QuantizeRows {
            x,
            largest,
            to: to.quants,
        }),
        Form::Tiles(isa) => isa.widen(TileRows { x, to: to.tiles }),
        Form::Spans => lanes.run(QuantizeSpans { x, to: to.spans }),
    }
}

/// Prepared activations that several workers write and, a phase later, read.
pub(super) struct Shared<'a> {
    slots: Vec<SharedSlot<'a>>,
}

struct SharedSlot<'a> {
    form: Form,
    floats: SharedSlice<'a, f32>,
    quants: SharedSlice<'a, QuantBlock>,
    tiles: SharedSlice<'a, TileWords>,
    spans: SharedSlice<'a, RowSpan>,
}

impl<'a> Shared<'a> {
    pub fn new(prepared: &'a mut Prepared) -> Self {
        let slots = prepared.slots.iter_mut().map(|slot| SharedSlot {
            form: slot.form,
            floats: SharedSlice::new(&mut slot.floats),
            quants: SharedSlice::new(&mut slot.quants),
            tiles: SharedSlice::new(&mut slot.tiles),
            spans: SharedSlice::new(&mut slot.spans),
        });
        Self {
            slots: slots.collect(),
        }
    }

    fn slot(&self, form: Form) -> &SharedSlot<'a> {
        let slot = self.slots.iter().find(|slot| slot.form == form);
        slot.expect("there is room for every form that is used")
    }

    /// # Safety
    /// Nobody else reads or writes what is in `range` while the piece lives.
    unsafe fn piece(&self, form: Form, range: Range<usize>) -> Piece<'_> {
        let slot = self.slot(form);
        let mut piece = Piece::default();
        // SAFETY: as the caller promises.
        unsafe {
            match form {
                Form::Floats(_) => piece.floats = slot.floats.part(range),
                Form::Quants(_) => piece.quants = slot.quants.part(range),
                Form::Tiles(_) => piece.tiles = slot.tiles.part(range),
                Form::Spans => piece.spans = slot.spans.part(range),
            }
        }
        piece
    }

    /// # Safety
    /// Nobody writes while what is returned lives.
    pub unsafe fn ready(&self, form: Form) -> Ready<'_> {
        let slot = self.slot(form);
        // SAFETY: as the caller promises.
        unsafe {
            Ready {
                floats: slot.floats.all(),
                quants: slot.quants.all(),
                tiles: slot.tiles.all(),
                spans: slot.spans.all(),
            }
        }
    }
}
