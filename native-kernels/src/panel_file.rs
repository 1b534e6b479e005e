//! A file of panels that were packed before, mapped into memory where that is as good as memory of our own.
//!
//! It is where the system has the file in huge pages, which Linux does for some file systems: the same bytes in pages of
//! 4 KiB are read at four fifths of the speed. Then nothing is copied, and the panels are in memory once, in the system's
//! cache of the file, for every process that uses them. Whoever is refused a mapping reads the file instead.

use crate::memory::ALIGNMENT;
use crate::workers::Workers;
use std::fs::File;
use std::sync::Arc;
use std::{fmt, io};

/// A file that is mapped to be read.
pub struct PanelFile {
    view: Arc<os::View>,
}

impl PanelFile {
    /// Maps a file whose panels these workers will read. `None` where reading it into memory serves better: others can
    /// write it, it is not in huge pages, the workers are of several NUMA nodes, or this system is not Linux.
    ///
    /// A file that becomes shorter while it is mapped ends the process with a signal, and one that is written to changes
    /// what was verified. So only a file is mapped that belongs to this user and that nobody else may write
    /// ([`is_private`]); and this user's programs must replace it and never write to it.
    ///
    /// **Errors**: the system has no room for the mapping.
    pub fn map(file: &File, workers: &Workers) -> io::Result<Option<Self>> {
        // The pages of a file lie on whatever node they were read on.
        if workers.nodes().len() > 1 || !is_private(file)? {
            return Ok(None);
        }
        let view = os::View::new(file)?;
        let huge = view.filter(|view| view.huge_bytes() >= view.bytes().len() / 10 * 9);
        Ok(huge.map(|view| Self {
            view: Arc::new(view),
        }))
    }

    /// What is in the file.
    pub fn bytes(&self) -> &[u8] {
        self.view.bytes()
    }

    /// A piece of it.
    ///
    /// **Panics** if it is not within the file, or not aligned to [`ALIGNMENT`].
    pub(crate) fn piece(&self, offset: usize, len: usize) -> Piece {
        let all = self.bytes().len();
        let within = offset.checked_add(len).is_some_and(|end| end <= all);
        assert!(
            within && offset.is_multiple_of(ALIGNMENT),
            "{len} bytes from {offset} of a file of {all}"
        );
        Piece {
            view: self.view.clone(),
            offset,
            len,
        }
    }
}

impl fmt::Debug for PanelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PanelFile of {} bytes", self.bytes().len())
    }
}

/// A piece of a mapped file, which stays mapped as long as there is one.
pub(crate) struct Piece {
    view: Arc<os::View>,
    offset: usize,
    len: usize,
}

impl Piece {
    pub fn bytes(&self) -> &[u8] {
        &self.view.bytes()[self.offset..][..self.len]
    }
}

/// Is it a plain file of the user that this process acts as, which nobody else may write?
///
/// **Errors**: the system does not say.
#[cfg(unix)]
pub fn is_private(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    // SAFETY: it takes nothing, touches no memory, and cannot fail.
    let user = unsafe { libc::geteuid() };
    Ok(metadata.is_file() && metadata.uid() == user && metadata.mode() & 0o022 == 0)
}

/// Is it a plain file? Who may write it is not asked here.
///
/// **Errors**: the system does not say.
#[cfg(not(unix))]
pub fn is_private(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.is_file())
}

#[cfg(all(target_os = "linux", not(miri)))]
mod os {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::ptr::NonNull;
    use std::{fs, io, slice};

    /// A mapping of a whole file.
    pub struct View {
        start: NonNull<u8>,
        len: usize,
    }

    // SAFETY: the mapping is only ever read, and unmapped by its one owner.
    unsafe impl Send for View {}
    // SAFETY: as above.
    unsafe impl Sync for View {}

    impl View {
        /// `None` for an empty file, which cannot be mapped.
        pub fn new(file: &File) -> io::Result<Option<Self>> {
            let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
            let len = usize::try_from(file.metadata()?.len()).map_err(|_| too_large())?;
            if len == 0 {
                return Ok(None);
            }
            // SAFETY: a new private mapping at an address of the system's choice touches no existing memory.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE,
                    file.as_raw_fd(),
                    0,
                )
            };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let start = NonNull::new(start.cast()).ok_or_else(too_large)?;
            let view = Self { start, len };
            // Huge pages where it can have them, and all of them now. A refusal costs speed only, and shows below.
            view.advise(libc::MADV_HUGEPAGE);
            view.advise(libc::MADV_POPULATE_READ);
            Ok(Some(view))
        }

        fn advise(&self, advice: libc::c_int) {
            // SAFETY: the range is a mapping of ours, and the advice changes no content.
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) };
        }

        pub fn bytes(&self) -> &[u8] {
            // SAFETY: the mapping has `len` readable bytes, borrowed with `self`; nobody else may write the file, and who
            // may replaces it instead (see `PanelFile::map`).
            unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }

        /// Bytes of it that are mapped in huge pages; none where the system does not say.
        pub fn huge_bytes(&self) -> usize {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
            // Its first line begins with the address, those of its figures with their names.
            let head = format!("{:x}-", self.start.addr());
            let mine = smaps.lines().skip_while(|line| !line.starts_with(&head));
            let huge = mine
                .skip(1)
                .find_map(|line| line.strip_prefix("FilePmdMapped:"));
            let kilobytes = huge.and_then(|text| text.trim().strip_suffix("kB"));
            let kilobytes = kilobytes.and_then(|text| text.trim().parse().ok());
            kilobytes.map_or(0, |kilobytes: usize| kilobytes << 10)
        }
    }

    impl Drop for View {
        fn drop(&mut self) {
            // SAFETY: exactly what was mapped, and its owner is being dropped.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

/// Where it is not known how large the pages of a file are, and where every byte of memory is watched.
#[cfg(not(all(target_os = "linux", not(miri))))]
mod os {
    use std::fs::File;
    use std::io;

    /// None can be made.
    pub enum View {}

    impl View {
        pub fn new(_: &File) -> io::Result<Option<Self>> {
            Ok(None)
        }

        pub fn bytes(&self) -> &[u8] {
            match *self {}
        }

        pub fn huge_bytes(&self) -> usize {
            match *self {}
        }
    }
}

#[cfg(all(test, unix, not(miri)))]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// In writes of whole huge pages, so that the system may keep it in such.
    fn file(len: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 253) as u8).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn a_file_that_others_can_write_is_not_mapped() {
        let workers = Workers::new(1, &[]).unwrap();
        let file = file(8 << 20);
        assert!(is_private(&file).unwrap());
        for mode in [0o620, 0o602] {
            let permissions = std::fs::Permissions::from_mode(mode);
            file.set_permissions(permissions).unwrap();
            assert!(!is_private(&file).unwrap(), "{mode:o}");
            assert!(PanelFile::map(&file, &workers).unwrap().is_none());
        }
    }

    #[test]
    fn a_file_for_several_nodes_and_an_empty_one_are_not_mapped() {
        let workers = Workers::by_node(2, &[], &[0, 1]).unwrap();
        assert!(PanelFile::map(&file(8 << 20), &workers).unwrap().is_none());
        let workers = Workers::new(1, &[]).unwrap();
        assert!(PanelFile::map(&file(0), &workers).unwrap().is_none());
    }

    /// Where the file system of the temporary folder keeps files in huge pages; elsewhere there is nothing to see.
    #[test]
    fn what_is_mapped_is_the_file_and_outlives_it() {
        let workers = Workers::new(1, &[]).unwrap();
        let file = file(16 << 20);
        let Some(mapped) = PanelFile::map(&file, &workers).unwrap() else {
            eprintln!("skipped: files are not in huge pages here");
            return;
        };
        drop(file);
        let piece = mapped.piece(4096, 100);
        drop(mapped);
        let expected = (4096..4196).map(|i| (i * 31 % 253) as u8);
        assert!(piece.bytes().iter().copied().eq(expected));
    }
}
