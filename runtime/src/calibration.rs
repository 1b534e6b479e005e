//! What was measured of this machine: where it is kept between runs, and how much of it to measure.

use crate::error::{Failure, Result};
use crate::platforms::cache_folder;
use crate::progress::Progress;
use anyhow::{Context, anyhow};
use plinth_host::digest;
use plinth_kernels::Workers;
use plinth_kernels::calibrate::{Calibration, Options, calibrate};
use plinth_platform::facts::{Facts, MatmulCost};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Share of slow moments from which on a measurement says more about the neighbours than about the machine.
const DISTURBED: f64 = 0.15;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything, in a few seconds.
    Thorough,
    /// Peaks, without the costs of matrix products.
    Peaks,
    /// A little of everything, for sizes only.
    Quick,
}

/// Measures this machine, of which these are the facts, on so many threads.
///
/// # Errors
/// A thread or memory cannot be had.
pub fn measure(facts: &Facts, threads: u32, extent: Extent, quiet: bool) -> Result<Calibration> {
    let l2 = facts.host.caches.iter().find(|cache| cache.level == 2);
    // Of a machine that does not tell, the least that has been built in a decade.
    let l2 = l2.map_or(256 << 10, |cache| cache.bytes as usize);
    let thorough = Options::thorough(l2, facts.host.budget.memory);
    let options = match extent {
        Extent::Thorough => thorough,
        Extent::Peaks => Options {
            shapes: Vec::new(),
            ..thorough
        },
        Extent::Quick => Options::quick(l2),
    };
    let workers = Workers::new(threads as usize, &[])
        .context("cannot start the worker threads")
        .map_err(Failure::Failed)?;
    let progress = Progress::count("measuring this machine", quiet);
    calibrate(&workers, &options, &|done, total| progress.set(done, total))
        .context("cannot measure this machine")
        .map_err(Failure::Failed)
}

/// Warns of measurements that were made in a crowd, and says whether they were.
pub fn disturbed(calibration: &Calibration) -> bool {
    let disturbed = calibration.disturbed > DISTURBED;
    if disturbed {
        eprintln!(
            "warning: {:.0}% of the time other processes had a CPU: these are not the figures of this machine; \
             measure again when it is quiet",
            100.0 * calibration.disturbed
        );
    }
    disturbed
}

/// Where the measurements of this machine lie: the name holds all that they depend on. `None` for a user without a
/// cache folder.
pub fn file_of(facts: &Facts, threads: u32) -> Option<PathBuf> {
    let host = &facts.host;
    let key = json!({
        "vendor": host.vendor,
        "model": host.model,
        "isa": host.isa,
        "caches": host.caches,
        "threads": threads,
        "kernels": plinth_kernels::catalog(),
        "build": build(),
        "version": facts.engine.version,
    });
    let digest = digest(key.to_string().as_bytes());
    let name = format!("{}.json", digest.rsplit(':').next()?);
    Some(cache_folder()?.join("calibration").join(name))
}

/// Size and age of this program: kernels that were compiled anew cost something else.
fn build() -> Option<(u64, std::time::SystemTime)> {
    let program = std::env::current_exe().ok()?.metadata().ok()?;
    Some((program.len(), program.modified().ok()?))
}

/// What is kept there. Whatever cannot be read is as good as not there: it is measured again.
pub fn read(file: &Path) -> Option<Calibration> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Costs of matrix products on this machine, of which these are the facts; none if they were not measured.
pub fn costs(facts: &Facts) -> Vec<MatmulCost> {
    let kept = file_of(facts, facts.host.budget.threads);
    let kept = kept.as_deref().and_then(read);
    kept.map(|calibration| calibration.matmul)
        .unwrap_or_default()
}

/// Keeps measurements for the next time.
///
/// # Errors
/// The file cannot be written.
pub fn keep(file: &Path, calibration: &Calibration) -> Result<()> {
    let text = serde_json::to_vec_pretty(calibration).map_err(Failure::failed)?;
    let folder = file
        .parent()
        .ok_or_else(|| Failure::Failed(anyhow!("a file has a folder")))?;
    let temporary = file.with_extension(format!("partial-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, file));
    written
        .with_context(|| format!("cannot keep the measurements in '{}'", file.display()))
        .map_err(Failure::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_kernels::calibrate::DispatchCost;

    #[test]
    fn what_was_kept_is_read_and_what_is_broken_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("calibration").join("this.json");
        let calibration = Calibration {
            kernels: "0.1.0".to_owned(),
            threads: 2,
            clock_ghz: 3.5,
            disturbed: 0.0,
            compute: Vec::new(),
            read: Vec::new(),
            dispatch: DispatchCost {
                threads: 2,
                awake_us: 0.5,
                asleep_us: 40.0,
            },
            matmul: Vec::new(),
        };
        assert_eq!(read(&file), None);
        keep(&file, &calibration).expect("it can be written");
        assert_eq!(read(&file), Some(calibration));
        std::fs::write(&file, "{\"kernels\": ").expect("it can be written");
        assert_eq!(read(&file), None);
    }
}
