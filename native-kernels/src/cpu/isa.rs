//! Which instructions a kernel runs on: chosen once, when the kernels are bound, from what the CPU really has.

#[cfg(target_arch = "x86_64")]
use super::amx::{self, AMX_BF16, Amx};
#[cfg(target_arch = "x86_64")]
use super::amx_int8::{self, AmxInt8};
#[cfg(target_arch = "x86_64")]
use super::avx_vnni::AvxVnni;
#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::{Avx512, Avx512Vnni};
#[cfg(target_arch = "x86_64")]
use super::avx512_bf16::Avx512Bf16;
use super::generic::attention::PairsKernel;
use super::generic::span_matmul::SpanKernel;
use super::generic::tile_matmul::{PairKernel, TileKernel};
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
#[cfg(target_arch = "aarch64")]
use super::neon_dot::{NeonDotprod, NeonI8mm};
use super::portable::Portable;
use super::vector::{Int8, Int8Kernel, LaneKernel, Lanes};
#[cfg(target_arch = "x86_64")]
use crate::bind::MANY_ROWS;
use plinth_platform::facts::Kernel;

/// Instruction sets with float lanes. Holding a value proves that the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LaneIsa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl LaneIsa {
    /// All that this CPU has, the portable one first and the widest last.
    pub fn all() -> impl Iterator<Item = Self> {
        ["portable", "neon", "avx2", "avx512"]
            .into_iter()
            .filter_map(Self::detect)
    }

    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(LaneIsa::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::detect().map(LaneIsa::Avx2),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Avx512::detect().map(LaneIsa::Avx512),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::detect().map(LaneIsa::Neon),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: LaneKernel>(self, kernel: K) -> K::Output {
        match self {
            LaneIsa::Portable(lanes) => kernel.run(lanes),
            #[cfg(target_arch = "x86_64")]
            LaneIsa::Avx2(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            LaneIsa::Avx512(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "aarch64")]
            LaneIsa::Neon(lanes) => lanes.run(kernel),
        }
    }

    /// What the catalogue calls it.
    pub fn name(self) -> &'static str {
        match self {
            LaneIsa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            LaneIsa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            LaneIsa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            LaneIsa::Neon(_) => "neon",
        }
    }

    /// Largest group of rows in a float matrix product.
    pub fn rows(self) -> usize {
        struct Rows;
        impl LaneKernel for Rows {
            type Output = usize;
            fn run<L: Lanes>(self, _: L) -> usize {
                L::ROWS
            }
        }
        self.run(Rows)
    }
}

/// Instruction sets with integer dot products. Holding a value proves that the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Int8Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(NeonI8mm),
}

impl Int8Isa {
    /// All that this CPU has, the portable one first.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        [
            "portable",
            "neon",
            "neon-dotprod",
            "neon-i8mm",
            "avx2",
            "avx-vnni",
            "avx512-vnni",
        ]
        .into_iter()
        .filter_map(Self::detect)
    }

    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(Int8Isa::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::detect().map(Int8Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            "avx-vnni" => AvxVnni::detect().map(Int8Isa::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            "avx512-vnni" => Avx512Vnni::detect().map(Int8Isa::Avx512Vnni),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::detect().map(Int8Isa::Neon),
            #[cfg(target_arch = "aarch64")]
            "neon-dotprod" => NeonDotprod::detect().map(Int8Isa::NeonDotprod),
            #[cfg(target_arch = "aarch64")]
            "neon-i8mm" => NeonI8mm::detect().map(Int8Isa::NeonI8mm),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        match self {
            Int8Isa::Portable(int8) => kernel.run(int8),
            #[cfg(target_arch = "x86_64")]
            Int8Isa::Avx2(int8) => int8.run_int8(kernel),
            #[cfg(target_arch = "x86_64")]
            Int8Isa::AvxVnni(int8) => int8.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Int8Isa::Avx512Vnni(int8) => int8.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Int8Isa::Neon(int8) => int8.run_int8(kernel),
            #[cfg(target_arch = "aarch64")]
            Int8Isa::NeonDotprod(int8) => int8.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Int8Isa::NeonI8mm(int8) => int8.run(kernel),
        }
    }

    /// What the catalogue calls it.
    pub fn name(self) -> &'static str {
        match self {
            Int8Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Int8Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Int8Isa::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Int8Isa::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Int8Isa::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Int8Isa::NeonDotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Int8Isa::NeonI8mm(_) => "neon-i8mm",
        }
    }

    /// Largest group of rows in a quantised matrix product.
    pub fn rows(self) -> usize {
        struct Rows;
        impl Int8Kernel for Rows {
            type Output = usize;
            fn run<I: Int8>(self, _: I) -> usize {
                I::ROWS
            }
        }
        self.run(Rows)
    }
}

/// Instruction sets with products of `bf16`, in tile registers or in pairs. Holding a value proves that the CPU has it and
/// the system allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileIsa {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "there is no value to run a kernel with")
)]
impl TileIsa {
    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            #[cfg(target_arch = "x86_64")]
            "avx512-bf16" => Avx512Bf16::detect().map(TileIsa::Avx512Bf16),
            #[cfg(target_arch = "x86_64")]
            "amx" => Amx::detect().map(TileIsa::Amx),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: TileKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileIsa::Avx512Bf16(unit) => unit.run(kernel),
            #[cfg(target_arch = "x86_64")]
            TileIsa::Amx(unit) => unit.run(kernel),
        }
    }

    /// What the catalogue calls it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileIsa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            TileIsa::Amx(_) => "amx",
        }
    }

    /// Runs a kernel that only writes tiles of weights.
    pub fn widen<K: PairKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileIsa::Avx512Bf16(unit) => unit.widen(kernel),
            #[cfg(target_arch = "x86_64")]
            TileIsa::Amx(unit) => unit.widen(kernel),
        }
    }
}

/// Instruction sets with products of pairs of `bf16`, for attention of few queries. Holding a value proves that the CPU has
/// it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PairsIsa {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "there is no value to run a kernel with")
)]
impl PairsIsa {
    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            #[cfg(target_arch = "x86_64")]
            "avx512-bf16" => Avx512Bf16::detect().map(PairsIsa::Avx512Bf16),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: PairsKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairsIsa::Avx512Bf16(unit) => unit.run_pairs(kernel),
        }
    }

    /// The float lanes that go with it.
    pub fn lanes(self) -> LaneIsa {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairsIsa::Avx512Bf16(unit) => LaneIsa::Avx512(unit.float_lanes()),
        }
    }

    /// What the catalogue calls it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairsIsa::Avx512Bf16(_) => "avx512-bf16",
        }
    }
}

/// Instruction sets with products of tiles of bytes. Holding a value proves that the CPU has it and the system allows it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SpanIsa {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    AmxInt8(AmxInt8),
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "there is no value to run a kernel with")
)]
impl SpanIsa {
    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            #[cfg(target_arch = "x86_64")]
            "avx512-vnni" => Avx512Vnni::detect().map(SpanIsa::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            "amx-int8" => AmxInt8::detect().map(SpanIsa::AmxInt8),
            _ => None,
        }
    }

    /// Runs the product, compiled for this instruction set.
    pub fn run<K: SpanKernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            SpanIsa::Avx512Vnni(unit) => unit.run_spans(kernel),
            #[cfg(target_arch = "x86_64")]
            SpanIsa::AmxInt8(unit) => unit.run(kernel),
        }
    }

    /// Rows from which on it is worth bringing weights into spans, where nothing was measured. (On an EPYC (Zen 4) `q4_1`
    /// was faster from 87 rows on: `plinth calibrate`, then `plinth plan`.)
    pub fn many_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            SpanIsa::Avx512Vnni(_) => 96,
            #[cfg(target_arch = "x86_64")]
            SpanIsa::AmxInt8(_) => MANY_ROWS,
        }
    }

    /// What brings weights and activations into spans.
    pub fn lanes(self) -> LaneIsa {
        match self {
            #[cfg(target_arch = "x86_64")]
            SpanIsa::Avx512Vnni(unit) => LaneIsa::Avx512(unit.float_lanes()),
            #[cfg(target_arch = "x86_64")]
            SpanIsa::AmxInt8(unit) => LaneIsa::Avx512(unit.float_lanes()),
        }
    }

    /// What the catalogue calls it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            SpanIsa::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            SpanIsa::AmxInt8(_) => "amx-int8",
        }
    }
}

/// Features that the kernel requires and this CPU lacks.
pub(crate) fn missing_features(kernel: &Kernel) -> Vec<String> {
    let mut missing = kernel.requires.clone();
    missing.retain(|feature| !has(feature));
    missing
}

/// Does this CPU have the feature that Linux calls so?
#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "f16c" => is_x86_feature_detected!("f16c"),
        "avx_vnni" => is_x86_feature_detected!("avxvnni"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512_vnni" => is_x86_feature_detected!("avx512vnni"),
        "avx512_bf16" => is_x86_feature_detected!("avx512bf16"),
        // Without tiles and the system's leave the others are of no use.
        "amx_tile" => amx::usable(),
        "amx_bf16" => amx::usable() && amx::has(AMX_BF16),
        "amx_int8" => amx_int8::usable(),
        _ => false,
    }
}

/// Does this CPU have the feature that Linux calls so?
#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    use std::arch::is_aarch64_feature_detected;
    match feature {
        "asimd" => is_aarch64_feature_detected!("neon"),
        "asimddp" => is_aarch64_feature_detected!("dotprod"),
        "i8mm" => is_aarch64_feature_detected!("i8mm"),
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has(_: &str) -> bool {
    false
}

/// How weights are streamed from memory by products of few rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streaming {
    /// Bytes ahead of their use at which weights are asked for.
    pub ahead: usize,
    /// Runs of panels that are read side by side: 1 or 4.
    pub streams: usize,
}

/// What suits this CPU.
///
/// Measured, one thread. A Xeon (Sapphire and Emerald Rapids) reads 13 GB/s as one stream, 18 GB/s as four with a prefetch
/// into the second-level cache 2 KiB ahead: its first-level cache has too few buffers to wait for memory. On an EPYC
/// (Zen 4) the products of one row with 97 MB of `q4_1` weights took 6.4 ms without a prefetch, 3.2 to 3.4 ms at 64 to
/// 320 bytes, 3.6 to 4.2 ms at 640 bytes and more; panels side by side were slower (5.2 ms for two, 3.5 to 5.3 ms for
/// four). Larger blocks want it nearer: 71 MB of `q8_0` took 2.6 ms at 64 bytes, 2.7 ms at 128, 3.2 ms at 256 and 4 to 5
/// ms at 544 and more; 55 MB of `q6_k` 1.97, 2.04 and 2.06 ms at the first three; `q4_0` and `q4_1` were the same at all
/// of them. Asking farther ahead besides, 2 to 8 KiB, into either cache, was slower. To repeat: return other numbers here,
/// then `cargo bench -p plinth-kernels -- "1x65536x1024" --threads 1`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn streaming() -> Streaming {
    if is_intel() {
        Streaming {
            ahead: 2 << 10,
            streams: 4,
        }
    } else {
        Streaming {
            ahead: 64,
            streams: 1,
        }
    }
}

/// What suits any CPU. The portable lanes do not ask ahead.
#[cfg(any(not(target_arch = "x86_64"), miri))]
pub(crate) fn streaming() -> Streaming {
    Streaming {
        ahead: 256,
        streams: 1,
    }
}

/// Is this CPU made by Intel? It differs in what its caches do.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let intel = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
    [vendor.ebx, vendor.edx, vendor.ecx] == intel
}

/// An interpreter is made by nobody.
#[cfg(all(target_arch = "x86_64", miri))]
pub(crate) fn is_intel() -> bool {
    false
}
