//! Zeroed memory from the operating system, in huge pages where it grants them, touched only when used.
//!
//! Weights and the KV cache live here. Reading weights from 4 KiB pages costs a fifth of the bandwidth and more, and a
//! block of the cache that no sequence uses must cost no memory.

use half::{bf16, f16};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::{io, slice};

/// Alignment of every [`Region`] and [`Slab`]: one cache line, one AVX-512 vector.
pub(crate) const ALIGNMENT: usize = 64;
#[cfg(all(unix, not(miri)))]
const HUGE_PAGE: usize = 2 << 20;

/// Types that are nothing but their bytes: every pattern of bits is a value, there is no padding, and the alignment is
/// at most [`ALIGNMENT`].
///
/// # Safety
/// The implementor keeps these three promises.
pub(crate) unsafe trait Pod: Copy + Send + Sync + 'static {}

// SAFETY: primitive numbers and, by the documentation of `half`, transparent wrappers of `u16`.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for f32 {}
// SAFETY: as above.
unsafe impl Pod for f16 {}
// SAFETY: as above.
unsafe impl Pod for bf16 {}
// SAFETY: an array has the layout of its elements side by side.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// The value whose bytes are all zero.
pub(crate) fn zeroed<T: Pod>() -> T {
    // SAFETY: `T` is `Pod`, so any bytes are a value.
    unsafe { std::mem::zeroed() }
}

/// The bytes as values of `T`.
///
/// **Panics** if they are not aligned for it or no whole number of it.
pub(crate) fn cast<T: Pod>(bytes: &[u8]) -> &[T] {
    let len = checked_len::<T>(bytes);
    // SAFETY: `T` is `Pod`, so its bytes are a value; length and alignment were checked.
    unsafe { slice::from_raw_parts(bytes.as_ptr().cast(), len) }
}

/// The bytes as values of `T`, to write.
///
/// **Panics** if they are not aligned for it or no whole number of it.
pub(crate) fn cast_mut<T: Pod>(bytes: &mut [u8]) -> &mut [T] {
    let len = checked_len::<T>(bytes);
    // SAFETY: `T` is `Pod`, so its bytes are a value and any value of it is bytes; length and alignment were checked.
    unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}

fn checked_len<T: Pod>(bytes: &[u8]) -> usize {
    let (size, align) = (size_of::<T>(), align_of::<T>());
    assert!(
        bytes.as_ptr().addr().is_multiple_of(align) && bytes.len().is_multiple_of(size),
        "{} bytes at {:p} are no values of {size} bytes aligned to {align}",
        bytes.len(),
        bytes.as_ptr(),
    );
    bytes.len() / size
}

/// A mapping of anonymous memory: zero until written, aligned to a huge page, given back when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
    mapping: os::Mapping,
}

// SAFETY: the region owns its memory, which any thread may reach; access is governed by `&` and `&mut`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `len` zero bytes.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let mapping = os::map(len.max(1))?;
        Ok(Self {
            start: mapping.aligned_start(),
            len,
            mapping,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        os::unmap(&self.mapping);
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping holds `len` initialised bytes from `start`, borrowed with `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Hands out pieces of large regions, so that many small matrices share huge pages. Memory returns to the system when
/// the last piece of a region is dropped.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    current: Option<(Arc<Region>, usize)>,
}

impl Arena {
    /// Address space reserved at a time. What is not written costs nothing.
    const RESERVE: usize = 256 << 20;

    /// `len` zero bytes aligned to [`ALIGNMENT`].
    pub fn allocate(&mut self, len: usize) -> io::Result<Slab> {
        let fits = |(region, used): &(Arc<Region>, usize)| region.len - used >= len;
        let (region, used) = match self.current.take().filter(fits) {
            Some(current) => current,
            None => (Arc::new(Region::zeroed(len.max(Self::RESERVE))?), 0),
        };
        let slab = Slab {
            region: region.clone(),
            offset: used,
            len,
        };
        let end = (used + len).next_multiple_of(ALIGNMENT).min(region.len);
        self.current = Some((region, end));
        Ok(slab)
    }
}

/// A piece of a region that an [`Arena`] handed out.
///
/// **Invariant:** no other slab and no reference to the region covers its bytes: the arena hands out each byte once, and
/// the region itself is never dereferenced after it went into an arena.
#[derive(Debug)]
pub(crate) struct Slab {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Slab {
    fn start(&self) -> *mut u8 {
        // SAFETY: the arena checked that the slab is within its region.
        unsafe { self.region.start.as_ptr().add(self.offset) }
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are within the region and this slab's own (see the invariant).
        unsafe { slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

#[cfg(all(unix, not(miri)))]
mod os {
    use super::HUGE_PAGE;
    use std::io;
    use std::ptr::NonNull;

    #[derive(Debug)]
    pub struct Mapping {
        start: NonNull<u8>,
        bytes: usize,
    }

    impl Mapping {
        pub fn aligned_start(&self) -> NonNull<u8> {
            let offset = self.start.align_offset(HUGE_PAGE);
            // SAFETY: the mapping is a huge page longer than asked for, so the aligned address is within it.
            unsafe { self.start.add(offset) }
        }
    }

    pub fn map(len: usize) -> io::Result<Mapping> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        // SAFETY: a new private anonymous mapping at an address of the system's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(too_large)?;
        advise_huge_pages(start, bytes);
        Ok(Mapping { start, bytes })
    }

    pub fn unmap(mapping: &Mapping) {
        // SAFETY: exactly what `map` returned, and its owner is being dropped.
        unsafe { libc::munmap(mapping.start.as_ptr().cast(), mapping.bytes) };
    }

    /// A refusal costs speed only, so it is not an error.
    #[cfg(target_os = "linux")]
    fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
        // SAFETY: the range is a mapping of ours, and the advice changes no content.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }

    #[cfg(not(target_os = "linux"))]
    fn advise_huge_pages(_: NonNull<u8>, _: usize) {}
}

/// From the allocator: where there is no `mmap`, and where every byte of an allocation is watched.
#[cfg(any(not(unix), miri))]
mod os {
    use super::ALIGNMENT;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::ptr::NonNull;

    #[derive(Debug)]
    pub struct Mapping {
        start: NonNull<u8>,
        layout: Layout,
    }

    impl Mapping {
        pub fn aligned_start(&self) -> NonNull<u8> {
            self.start
        }
    }

    pub fn map(len: usize) -> io::Result<Mapping> {
        let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(len, ALIGNMENT).map_err(|_| out_of_memory())?;
        // SAFETY: the caller asks for at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        Ok(Mapping { start, layout })
    }

    pub fn unmap(mapping: &Mapping) {
        // SAFETY: exactly what `map` allocated, and its owner is being dropped.
        unsafe { dealloc(mapping.start.as_ptr(), mapping.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zero_aligned_and_writable_to_its_end() {
        let mut region = Region::zeroed(5000).unwrap();
        assert!(region.iter().all(|&byte| byte == 0));
        assert!(region.as_ptr().addr().is_multiple_of(ALIGNMENT));
        region[4999] = 7;
        assert_eq!(region[4999], 7);
        assert_eq!(Region::zeroed(0).unwrap().len(), 0);
    }

    #[test]
    fn a_size_that_no_machine_has_is_an_error() {
        assert!(Region::zeroed(usize::MAX).is_err());
        assert!(Region::zeroed(usize::MAX / 2).is_err());
    }

    #[test]
    fn slabs_do_not_overlap_and_outlive_their_arena() {
        let mut arena = Arena::default();
        let mut slabs: Vec<Slab> = [100, 1, 0, 64]
            .map(|len| arena.allocate(len).unwrap())
            .into();
        drop(arena);
        for (i, slab) in slabs.iter_mut().enumerate() {
            assert!(slab.as_ptr().addr().is_multiple_of(ALIGNMENT));
            slab.fill(i as u8 + 1);
        }
        for (i, slab) in slabs.iter().enumerate() {
            assert!(slab.iter().all(|&byte| byte == i as u8 + 1));
        }
    }

    #[test]
    #[should_panic(expected = "are no values of 4 bytes")]
    fn a_cast_of_odd_bytes_is_refused() {
        cast::<f32>(&[0u8; 6][..]);
    }
}
