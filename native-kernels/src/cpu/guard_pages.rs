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
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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

/// The page at which a test goes too far on purpose, and how often it was stopped there.
static FORBIDDEN: AtomicUsize = AtomicUsize::new(0);
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// What the system may call an access to a page that nobody may touch.
const FAULTS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Counts a fault at the forbidden page and opens the page, so that the access goes on; any other fault ends the process.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system hands a handler of this kind a description of the fault.
    let at = unsafe { (*info).si_addr() };
    let page = at.map_addr(|at| at & !(page_bytes() - 1));
    if page.addr() == FORBIDDEN.load(Relaxed) {
        STOPPED.fetch_add(1, Relaxed);
        // SAFETY: a page of the test's own mapping, which it only reads one number of.
        unsafe { libc::mprotect(page, page_bytes(), libc::PROT_READ) };
    } else {
        // SAFETY: without a handler the same access faults once more, and that ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A guard that does not guard would prove nothing: the system stops a read beyond it, and none before it. No second
/// process is needed to see that: one with threads that is forked under an emulator may wait for ever for a lock that
/// a thread held which it does not have.
#[test]
fn who_goes_too_far_is_stopped() {
    // SAFETY: all of it is numbers, a set of signals and a pointer, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let before = FAULTS.map(|signal| {
        let mut before = action;
        // SAFETY: the handler calls nothing that a handler may not, and the structures outlive the call.
        assert_eq!(unsafe { libc::sigaction(signal, &action, &mut before) }, 0);
        before
    });
    for edge in EDGES {
        let numbers = Guarded::new(&[1.0f32; 37], edge);
        let start = numbers.start.as_ptr();
        let beyond = match edge {
            Edge::Start => start.wrapping_sub(1),
            Edge::End => start.wrapping_add(numbers.len),
        };
        FORBIDDEN.store(beyond.addr() & !(page_bytes() - 1), Relaxed);
        for (at, times) in [(start, 0), (beyond, 1)] {
            STOPPED.store(0, Relaxed);
            // SAFETY: a number of the mapping; where its page may not be read the handler opens it.
            std::hint::black_box(unsafe { at.read_volatile() });
            assert_eq!(STOPPED.load(Relaxed), times, "{edge:?}");
        }
    }
    for (signal, before) in FAULTS.into_iter().zip(&before) {
        // SAFETY: what was there before.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}
