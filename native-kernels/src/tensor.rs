//! Views of `f32` matrices: the place where bounds are proved, so that kernels need no pointer and no `unsafe`.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// A matrix to read: `rows` rows of `cols` elements, the first elements of two rows `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// A dense row-major matrix.
    ///
    /// **Panics** if `data` is not exactly `rows * cols` elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_dense(data.len(), rows, cols);
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows are `stride` elements apart.
    ///
    /// **Panics** if a row is longer than the stride or the last one ends after `data`.
    pub fn with_stride(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, stride);
        Self {
            data,
            rows,
            cols,
            stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row`.
    ///
    /// **Panics** if there is no such row.
    #[inline]
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.data[row * self.stride..][..self.cols]
    }

    /// The same rows, of each only the columns in `range`.
    ///
    /// **Panics** if there are no such columns.
    pub fn columns(&self, range: Range<usize>) -> Rows<'a> {
        assert!(
            range.start <= range.end && range.end <= self.cols,
            "columns {range:?} of {}",
            self.cols
        );
        let first = if self.rows == 0 { 0 } else { range.start };
        Self::with_stride(&self.data[first..], self.rows, range.len(), self.stride)
    }

    /// The rows in `range`.
    ///
    /// **Panics** if there are no such rows.
    pub fn slice(&self, range: Range<usize>) -> Rows<'a> {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        let first = if range.is_empty() {
            0
        } else {
            range.start * self.stride
        };
        Self::with_stride(&self.data[first..], range.len(), self.cols, self.stride)
    }
}

/// A matrix to write: as [`Rows`], and nobody else sees its elements.
///
/// **Invariant:** `data` is valid for reads and writes of the elements `row * stride + col` (`row < rows`,
/// `col < cols`), and for the lifetime `'a` no other view covers one of them. Elements between the rows may belong to
/// someone else, which is why this is not a slice.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: NonNull<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the view is an exclusive borrow of its elements (see the invariant), and `f32` is `Send`.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: through a shared reference the elements can only be read, except by the unsafe `part`, whose caller
// promises that parts do not overlap.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// A dense row-major matrix.
    ///
    /// **Panics** if `data` is not exactly `rows * cols` elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_dense(data.len(), rows, cols);
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows are `stride` elements apart.
    ///
    /// **Panics** if a row is longer than the stride or the last one ends after `data`.
    pub fn with_stride(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, stride);
        Self {
            data: NonNull::from(data).cast(),
            rows,
            cols,
            stride,
            lifetime: PhantomData,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row`.
    ///
    /// **Panics** if there is no such row.
    #[inline]
    pub fn row(&self, row: usize) -> &[f32] {
        let first = self.first_of(row);
        // SAFETY: the row is within the view, which is borrowed for reading.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.cols) }
    }

    /// Row `row`, to write.
    ///
    /// **Panics** if there is no such row.
    #[inline]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let first = self.first_of(row);
        // SAFETY: the row is within the view, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), self.cols) }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> RowsMut<'_> {
        RowsMut {
            lifetime: PhantomData,
            ..*self
        }
    }

    /// A part of the view: the elements of `rows` and `cols`.
    ///
    /// **Panics** if they are not all within the view.
    ///
    /// # Safety
    /// While the part lives, no other part with a common element may live, and the view itself must not be used to read
    /// or write those elements.
    pub(crate) unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> RowsMut<'_> {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {}",
            self.rows
        );
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "columns {cols:?} of {}",
            self.cols
        );
        let offset = if rows.is_empty() {
            0
        } else {
            rows.start * self.stride + cols.start
        };
        RowsMut {
            // SAFETY: the first element of a part that has rows is an element of the view, or one past a row of it.
            data: unsafe { self.data.add(offset) },
            rows: rows.len(),
            cols: cols.len(),
            stride: self.stride,
            lifetime: PhantomData,
        }
    }

    /// The elements of the view, to read.
    ///
    /// # Safety
    /// While what is returned lives, nobody writes one of the elements.
    pub(crate) unsafe fn read(&self) -> Rows<'_> {
        let len = match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.cols,
        };
        // SAFETY: the elements are valid (see the invariant), those between the rows belong to the same allocation, and
        // the caller promises that nobody writes.
        let data = unsafe { std::slice::from_raw_parts(self.data.as_ptr(), len) };
        Rows::with_stride(data, self.rows, self.cols, self.stride)
    }

    fn first_of(&self, row: usize) -> NonNull<f32> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the invariant of the view: row `row` begins there.
        unsafe { self.data.add(row * self.stride) }
    }
}

fn assert_dense(len: usize, rows: usize, cols: usize) {
    assert!(
        rows.checked_mul(cols) == Some(len),
        "{len} elements do not make {rows} rows of {cols}"
    );
}

fn assert_fits(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(cols <= stride, "rows of {cols} at a stride of {stride}");
    let needed = match rows {
        0 => Some(0),
        _ => (rows - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(cols)),
    };
    assert!(
        needed.is_some_and(|needed| needed <= len),
        "{rows} rows of {cols} at a stride of {stride} do not fit in {len} elements"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views_see_their_columns() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let rows = Rows::new(&data, 3, 4).columns(1..3);
        assert_eq!(rows.row(2), [9.0, 10.0]);
        assert_eq!(rows.slice(1..2).row(0), [5.0, 6.0]);
        assert_eq!(rows.slice(3..3).rows(), 0);
        assert!(rows.columns(2..2).row(2).is_empty());
    }

    #[test]
    fn parts_write_where_the_whole_reads() {
        let mut data = vec![0.0; 12];
        let view = RowsMut::new(&mut data, 3, 4);
        // SAFETY: the two parts have no common column.
        let (mut left, mut right) = unsafe { (view.part(0..3, 0..1), view.part(1..3, 1..4)) };
        left.row_mut(2)[0] = 1.0;
        right.row_mut(1)[2] = 2.0;
        assert_eq!(data[8..], [1.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "2 rows of 3 at a stride of 4 do not fit in 6 elements")]
    fn a_view_beyond_its_data_is_refused() {
        Rows::with_stride(&[0.0; 6], 2, 3, 4);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn products_that_wrap_are_refused() {
        Rows::with_stride(&[0.0; 6], usize::MAX, 3, 4);
    }
}
