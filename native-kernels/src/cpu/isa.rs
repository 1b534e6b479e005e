//! Which instructions a kernel runs on: chosen once, when the kernels are bound, from what the CPU really has.

use super::portable::Portable;
use super::vector::{Int8, Int8Kernel, LaneKernel, Lanes};
use plinth_platform::facts::Kernel;

/// Instruction sets with float lanes. Holding a value proves that the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LaneIsa {
    Portable(Portable),
}

impl LaneIsa {
    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(LaneIsa::Portable(Portable)),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: LaneKernel>(self, kernel: K) -> K::Output {
        match self {
            LaneIsa::Portable(lanes) => kernel.run(lanes),
        }
    }

    /// Largest group of rows in a float matrix product.
    pub fn rows(self) -> usize {
        match self {
            LaneIsa::Portable(_) => <Portable as Lanes>::ROWS,
        }
    }
}

/// Instruction sets with integer dot products. Holding a value proves that the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Int8Isa {
    Portable(Portable),
}

impl Int8Isa {
    /// The instruction set of that name in the catalogue, if this CPU has it.
    pub fn detect(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(Int8Isa::Portable(Portable)),
            _ => None,
        }
    }

    /// Runs the kernel, compiled for this instruction set.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        match self {
            Int8Isa::Portable(int8) => kernel.run(int8),
        }
    }

    /// The float lanes that go with it.
    pub fn lanes(self) -> LaneIsa {
        match self {
            Int8Isa::Portable(int8) => LaneIsa::Portable(int8.lanes()),
        }
    }

    /// Largest group of rows in a quantised matrix product.
    pub fn rows(self) -> usize {
        match self {
            Int8Isa::Portable(_) => <Portable as Int8>::ROWS,
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
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512_vnni" => is_x86_feature_detected!("avx512vnni"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(_: &str) -> bool {
    false
}
