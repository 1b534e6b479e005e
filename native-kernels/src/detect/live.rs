//! What only the running process can tell: the CPUs it is bound to, and the features that its instructions may use.

use std::collections::BTreeSet;

use super::tree::IdSet;

/// The architecture that this process was built for, as Linux names it.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "powerpc64" if cfg!(target_endian = "little") => "powerpc64le",
        arch => arch,
    }
}

/// CPUs, if the operating system gives no list of them.
pub(super) fn parallelism() -> u32 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Keeps of the features in `/proc/cpuinfo` those that this process can use. Emulators and sandboxes show the host's
/// file, and a feature whose registers the operating system does not save (XCR0) faults at its first instruction.
/// Where there is no such file, what the standard library can detect is all that is known.
pub(super) fn usable(listed: BTreeSet<String>) -> BTreeSet<String> {
    let checked = checked_features();
    if listed.is_empty() {
        return checked
            .iter()
            .filter(|(_, usable)| *usable)
            .map(|(name, _)| (*name).to_owned())
            .collect();
    }
    let hidden = |feature: &String| {
        checked
            .iter()
            .any(|(name, usable)| name == feature && !usable)
            || (feature.starts_with("amx_") && !tiles_can_be_enabled())
    };
    listed
        .into_iter()
        .filter(|feature| !hidden(feature))
        .collect()
}

/// Pairs of Linux's name of a feature and whether the standard library finds it usable.
#[cfg(target_arch = "x86_64")]
fn checked_features() -> Vec<(&'static str, bool)> {
    macro_rules! check {
        ($($linux:literal $std:tt,)*) => { vec![$(($linux, std::arch::is_x86_feature_detected!($std)),)*] };
    }
    check!(
        "pni" "sse3", "ssse3" "ssse3", "sse4_1" "sse4.1", "sse4_2" "sse4.2", "popcnt" "popcnt", "aes" "aes",
        "pclmulqdq" "pclmulqdq", "sha_ni" "sha", "movbe" "movbe", "abm" "lzcnt", "bmi1" "bmi1", "bmi2" "bmi2",
        "avx" "avx", "avx2" "avx2", "fma" "fma", "f16c" "f16c", "gfni" "gfni", "vaes" "vaes",
        "vpclmulqdq" "vpclmulqdq", "avx_vnni" "avxvnni", "avx_ifma" "avxifma", "avx_vnni_int8" "avxvnniint8",
        "avx_vnni_int16" "avxvnniint16", "avx_ne_convert" "avxneconvert", "avx512f" "avx512f",
        "avx512cd" "avx512cd", "avx512dq" "avx512dq", "avx512bw" "avx512bw", "avx512vl" "avx512vl",
        "avx512ifma" "avx512ifma", "avx512vbmi" "avx512vbmi", "avx512_vbmi2" "avx512vbmi2",
        "avx512_vnni" "avx512vnni", "avx512_bitalg" "avx512bitalg", "avx512_vpopcntdq" "avx512vpopcntdq",
        "avx512_bf16" "avx512bf16", "avx512_fp16" "avx512fp16", "avx512_vp2intersect" "avx512vp2intersect",
    )
}

/// Pairs of Linux's name of a feature and whether the standard library finds it usable.
#[cfg(target_arch = "aarch64")]
fn checked_features() -> Vec<(&'static str, bool)> {
    macro_rules! check {
        ($($linux:literal $std:tt,)*) => { vec![$(($linux, std::arch::is_aarch64_feature_detected!($std)),)*] };
    }
    check!(
        "asimd" "neon", "asimdhp" "fp16", "asimddp" "dotprod", "asimdrdm" "rdm", "asimdfhm" "fhm", "fcma" "fcma",
        "i8mm" "i8mm", "bf16" "bf16", "sve" "sve", "sve2" "sve2", "atomics" "lse", "aes" "aes", "sha2" "sha2",
    )
}

/// No feature is checked: the standard library's detection is not stable here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn checked_features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Does the kernel let a process ask for AMX tile registers? Kernels before 5.16 list the feature and refuse it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn tiles_can_be_enabled() -> bool {
    const ARCH_GET_XCOMP_SUPP: libc::c_int = 0x1021; // Linux arch/x86/include/uapi/asm/prctl.h
    const TILE_CONFIG_AND_DATA: u64 = 0b11 << 17; // XCR0 bits 17 and 18
    let mut supported: u64 = 0;
    // SAFETY: this call only writes one u64 through its pointer, which is valid for the duration of the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_GET_XCOMP_SUPP,
            &raw mut supported,
        )
    } != 0;
    !failed && supported & TILE_CONFIG_AND_DATA == TILE_CONFIG_AND_DATA
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn tiles_can_be_enabled() -> bool {
    false
}

/// The calling thread's affinity mask; absent where there is no such thing.
#[cfg(target_os = "linux")]
pub(super) fn affinity() -> Option<IdSet> {
    // The kernel refuses a mask shorter than its own, so the mask grows until it fits. 1,024 CPUs mostly do.
    (0..7)
        .map(|doubling| affinity_in(16 << doubling))
        .find_map(|mask| mask)
}

#[cfg(target_os = "linux")]
fn affinity_in(words: usize) -> Option<IdSet> {
    let mut mask = vec![0u64; words];
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: the kernel writes at most `bytes` bytes, all within `mask`, which no one else refers to.
    let failed = unsafe { libc::sched_getaffinity(0, bytes, mask.as_mut_ptr().cast()) } != 0;
    let is_set = |cpu: &u32| mask[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
    (!failed).then(|| (0..words as u32 * 64).filter(is_set).collect())
}

/// The calling thread's affinity mask; absent where there is no such thing.
#[cfg(not(target_os = "linux"))]
pub(super) fn affinity() -> Option<IdSet> {
    None
}

/// Bytes of physical memory, where there is no `/proc/meminfo`.
#[cfg(all(unix, not(target_os = "linux")))]
pub(super) fn physical_memory() -> Option<u64> {
    // SAFETY: sysconf reads no memory of ours, whatever name it is asked for.
    let (pages, page) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    u64::try_from(pages)
        .ok()?
        .checked_mul(u64::try_from(page).ok()?)
        .filter(|bytes| *bytes > 0)
}

/// Bytes of physical memory: `/proc/meminfo` says it on Linux, and elsewhere it is not known.
#[cfg(not(all(unix, not(target_os = "linux"))))]
pub(super) fn physical_memory() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn features_that_cannot_be_checked_are_believed() {
        assert_eq!(
            usable(set(&["made_up", "constant_tsc"])),
            set(&["made_up", "constant_tsc"])
        );
    }

    #[test]
    fn features_that_this_process_cannot_use_are_not_claimed() {
        let all: BTreeSet<String> = checked_features()
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let usable = usable(all);
        for (name, detected) in checked_features() {
            assert_eq!(usable.contains(name), detected, "{name}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn affinity_names_at_least_one_cpu() {
        assert!(!affinity().expect("Linux has affinity masks").is_empty());
    }
}
