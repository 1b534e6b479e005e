use super::*;
use plinth_kernels::Selection;

/// Two matrices, of which one has several pieces, and the file of them.
struct Written {
    folder: tempfile::TempDir,
    matrices: Vec<(TensorInfo, Matrix)>,
    kernels: KernelSet,
    workers: Workers,
}

fn key() -> PackedKey {
    PackedKey {
        model: "a".repeat(64),
        layout: "b".repeat(64),
    }
}

impl Written {
    fn new() -> Self {
        let kernels = KernelSet::bind(&Selection::best()).expect("it binds");
        let workers = Workers::new(2, &[]).expect("two threads");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shapes = [(Format::Q4_0, 37, 64), (Format::F32, 333, 512)];
        let matrix = |(n, (format, rows, cols)): (usize, (Format, usize, usize))| {
            let bytes = rows * format.row_bytes(cols).expect("whole blocks");
            let bytes: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
            let packed = kernels.pack(&workers, format, rows, cols, &bytes);
            let place = crate::tensors::Place {
                file: 0,
                offset: 0,
                bytes: bytes.len() as u64,
            };
            let info = TensorInfo::new(format!("matrix {n}"), format, rows, cols, place);
            (info, packed.expect("it packs"))
        };
        let matrices: Vec<_> = shapes.into_iter().enumerate().map(matrix).collect();
        let written = Self {
            folder,
            matrices,
            kernels,
            workers,
        };
        written.write();
        written
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(key().file_name())
    }

    fn write(&self) {
        let mut writer = PackedWriter::create(&self.path()).expect("it can be made");
        for (info, matrix) in &self.matrices {
            writer.add(&info.name, matrix);
        }
        let bytes = writer.finish(&key()).expect("it can be written");
        assert_eq!(self.path().metadata().expect("it is there").len(), bytes);
    }

    /// Loads all of it and compares.
    fn load(&self) -> Result<(), String> {
        let file = PackedFile::open(&self.path(), &key(), &self.workers);
        let file = file.map_err(|error| error.to_string())?;
        for (info, matrix) in &self.matrices {
            match file.matrix(&self.kernels, &self.workers, info) {
                Ok(found) => assert!(found.as_bytes() == matrix.as_bytes(), "{}", info.name),
                Err(PackedError::File(error)) => return Err(error.to_string()),
                Err(PackedError::Pack(error)) => panic!("{error}"),
            }
        }
        Ok(())
    }

    /// What is said of the file after `change`, which is a new file each time: the old may be mapped.
    fn changed(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        let whole = std::fs::read(self.path()).expect("it can be read");
        let mut bytes = whole.clone();
        change(&mut bytes);
        self.replace(&bytes);
        let loaded = self.load();
        self.replace(&whole);
        loaded
    }

    fn replace(&self, bytes: &[u8]) {
        std::fs::remove_file(self.path()).expect("it can be removed");
        std::fs::write(self.path(), bytes).expect("it can be written");
    }
}

#[track_caller]
fn refused(result: Result<(), String>, expected: &str) {
    let error = result.expect_err(expected);
    assert!(error.contains(".panels"), "{error}");
    assert!(error.contains(expected), "{expected}: {error}");
    assert!(error.contains("found") || error.contains("cannot"));
}

#[test]
fn what_was_written_is_read() {
    Written::new().load().expect("it is as it was");
}

#[test]
fn a_byte_that_changed_anywhere_is_found() {
    let written = Written::new();
    let len = written.path().metadata().expect("it is there").len() as usize;
    let table = std::fs::read(written.path()).expect("it can be read");
    let table = u64::from_le_bytes(std::array::from_fn(|n| table[8 + n])) as usize;
    for (at, expected) in [
        (0, "magic"),
        (7, "magic"),
        (8, "table"),
        (23, "table"),
        (24, "digest"),
        (55, "digest"),
        (64, "'matrix 0'"),
        (table - 1, "'matrix 1'"),
        (table - (300 << 10), "'matrix 1'"),
        (table, "digest"),
        (len - 1, "digest"),
    ] {
        refused(written.changed(|bytes| bytes[at] ^= 0x40), expected);
    }
    written.load().expect("nothing else changed");
}

#[test]
fn a_file_of_another_length_is_refused() {
    let written = Written::new();
    for len in [0, 10, HEADER, 5000] {
        let expected = if len < HEADER { "bytes" } else { "table" };
        refused(written.changed(|bytes| bytes.truncate(len)), expected);
    }
    refused(written.changed(|bytes| bytes.push(0)), "table");
    refused(
        written.changed(|bytes| bytes.truncate(bytes.len() - 1)),
        "table",
    );
}

#[test]
fn another_model_and_another_layout_are_refused() {
    let written = Written::new();
    let other = "c".repeat(64);
    let open = |key: &PackedKey| {
        let opened = PackedFile::open(&written.path(), key, &written.workers);
        opened.map(|_| ()).map_err(|error| error.to_string())
    };
    let model = PackedKey {
        model: other.clone(),
        ..key()
    };
    refused(open(&model), "model");
    let layout = PackedKey {
        layout: other,
        ..key()
    };
    refused(open(&layout), "layout of panels");
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    let mut written = Written::new();
    written.matrices[0].0.rows = 38;
    refused(written.load(), "found 37 x 64 q4_0, expected 38 x 64 q4_0");
    written.matrices[0].0.name = "matrix 7".to_owned();
    refused(written.load(), "matrix 'matrix 7': found none");
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let written = Written::new();
    let permissions = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(written.path(), permissions).expect("it is ours");
    refused(written.load(), "its owner");
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let written = Written::new();
    let mut writer = PackedWriter::create(&written.path()).expect("it can be made");
    writer.add("matrix", &written.matrices[0].1);
    let entries = || std::fs::read_dir(written.folder.path()).map_or(0, Iterator::count);
    assert_eq!(entries(), 2);
    drop(writer);
    assert_eq!(entries(), 1);
    written.load().expect("the old one is as it was");
}

#[test]
fn a_digest_is_of_every_byte_whoever_takes_it() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny/qwen3");
    let bytes = std::fs::read(tiny.join("model.gguf")).expect("it can be read");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let digest = |bytes: &[u8], threads: usize| {
        std::fs::write(&path, bytes).expect("it can be written");
        let workers = Workers::new(threads, &[]).expect("threads");
        let model = crate::open(&path).expect("it opens");
        let digest = model.digest(&workers, &|_, _| {}).expect("it can be read");
        PackedKey::new(&model, &digest, &workers).expect("memory")
    };
    let key = digest(&bytes, 1);
    assert_eq!(digest(&bytes, 3), key);
    let mut changed = bytes.clone();
    *changed.last_mut().expect("it has bytes") ^= 1;
    let other = digest(&changed, 1);
    assert_ne!(other.model, key.model);
    assert_eq!(other.layout, key.layout);
}
