//! Memory that the chunks of one phase write in parts, and those of a later one read.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// A slice that several workers write in parts and, a phase later, read.
pub(super) struct SharedSlice<'a, T> {
    start: NonNull<T>,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: stands for an exclusive borrow of plain numbers; access is by unsafe functions whose caller promises that there
// is no race.
unsafe impl<T: Copy + Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            len: slice.len(),
            start: NonNull::from(slice).cast(),
            lifetime: PhantomData,
        }
    }

    /// A part, to write.
    ///
    /// **Panics** if it is not within the slice.
    ///
    /// # Safety
    /// While the part lives, nobody else reads or writes an element of it.
    #[allow(clippy::mut_from_ref, reason = "that is the caller's promise")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "in room");
        // SAFETY: within the slice; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// A part, to read.
    ///
    /// **Panics** if it is not within the slice.
    ///
    /// # Safety
    /// While what is returned lives, nobody writes an element of it.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "in room");
        // SAFETY: within the slice; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// All of it, to read.
    ///
    /// # Safety
    /// As [`read`](Self::read).
    pub unsafe fn all(&self) -> &[T] {
        // SAFETY: as the caller promises.
        unsafe { self.read(0..self.len) }
    }
}
