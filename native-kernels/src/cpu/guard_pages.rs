//! Every kernel on memory that ends, or begins, at a page that nobody may touch: one element too far is the end of the
//! process and not a lucky number.
//!
//! Inputs, weights, outputs and the cache are guarded; the scratch that kernels allocate for themselves is not.

mod attention;
mod products;
mod rows;

use super::isa::{Int8Isa, LaneIsa};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Which end of the memory abuts a page that may not be touched. Both have one, but elements fit without a gap at one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edge {
    Start,
    End,
}

const EDGES: [Edge; 2] = [Edge::Start, Edge::End];

/// Elements side by side with a page that may not be touched.
struct Guarded<T> {
    mapping: NonNull<u8>,
    bytes: usize,
    start: NonNull<T>,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    fn new(values: &[T], edge: Edge) -> Self {
        let (page, size) = (page_bytes(), size_of_val(values));
        let inner = size.next_multiple_of(page);
        let bytes = inner + 2 * page;
        // SAFETY: a new private anonymous mapping at an address of the system's choice touches no existing memory.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(mapping != libc::MAP_FAILED, "no memory for a test");
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("the system maps no page at zero");
        // SAFETY: the first page is followed by `inner` bytes of the mapping.
        let first = unsafe { mapping.add(page) };
        // Emulators refuse to change no pages at all.
        if inner > 0 {
            // SAFETY: whole pages of the mapping just made, which nobody uses yet.
            let done = unsafe {
                libc::mprotect(
                    first.as_ptr().cast(),
                    inner,
                    libc::PROT_READ | libc::PROT_WRITE,
                )
            };
            assert_eq!(done, 0, "pages can be made writable");
        }
        let offset = if edge == Edge::Start { 0 } else { inner - size };
        // SAFETY: `size` bytes from there on are within the writable pages.
        let start = unsafe { first.add(offset) }.cast::<T>();
        assert!(start.is_aligned(), "sizes are multiples of alignments");
        // SAFETY: as long as `values`, aligned, new and so not a part of it.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len()) };
        Self {
            mapping,
            bytes,
            start,
            len: values.len(),
        }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` has put `len` elements there, and they are borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` has mapped, and its owner is being dropped.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.bytes) };
    }
}

fn page_bytes() -> usize {
    // SAFETY: asks for a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("pages have a size")
}

/// The instruction sets with float lanes that this CPU has.
fn lane_isas() -> Vec<LaneIsa> {
    LaneIsa::all().collect()
}

/// The instruction sets with integer dot products that this CPU has.
fn int8_isas() -> Vec<Int8Isa> {
    Int8Isa::all().collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Remembers the first result and compares every other with it.
struct Same(Option<Vec<u32>>);

impl Same {
    fn check(&mut self, found: &[f32], what: &str) {
        assert!(found.iter().all(|x| !x.is_nan()), "{what}: not written");
        let found = bits(found);
        let expected = self.0.get_or_insert_with(|| found.clone());
        assert!(found == *expected, "{what}: other bits");
    }
}

/// A guard that does not guard would prove nothing: a process that reads beyond it is ended by the system.
#[test]
fn who_goes_too_far_is_ended() {
    for edge in EDGES {
        let numbers = Guarded::new(&[1.0f32; 37], edge);
        let beyond = match edge {
            Edge::Start => numbers.start.as_ptr().wrapping_sub(1),
            Edge::End => numbers.start.as_ptr().wrapping_add(numbers.len),
        };
        for (at, ended) in [(numbers.start.as_ptr(), false), (beyond, true)] {
            // SAFETY: the child reads one number and leaves, all of which a child of a process with threads may do.
            let status = unsafe {
                let child = libc::fork();
                if child == 0 {
                    // The signal is not for the handler that looks for overflows of the stack.
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    std::hint::black_box(at.read_volatile());
                    libc::_exit(0);
                }
                assert!(child > 0, "a process can be started");
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            };
            assert_eq!(libc::WIFSIGNALED(status), ended, "{edge:?}");
        }
    }
}
