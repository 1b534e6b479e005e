//! Elements of float panels.

use crate::cpu::vector::{LANES, Lanes};
use crate::memory::Pod;
use half::{bf16, f16};

/// Elements of a float panel, widened as they are loaded.
pub(crate) trait FloatElement: Pod {
    fn from_le(bytes: &[u8]) -> Self;
    fn to_f32(self) -> f32;
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F32;
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [Self; LANES]);
}

impl FloatElement for f32 {
    fn from_le(bytes: &[u8]) -> Self {
        f32::from_le_bytes(bytes.try_into().expect("4 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f32; LANES]) -> L::F32 {
        lanes.load(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [f32; LANES]) {
        lanes.store(x, to);
    }
}

impl FloatElement for f16 {
    fn from_le(bytes: &[u8]) -> Self {
        f16::from_le_bytes(bytes.try_into().expect("2 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f16; LANES]) -> L::F32 {
        lanes.load_f16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [f16; LANES]) {
        lanes.store_f16(x, to);
    }
}

impl FloatElement for bf16 {
    fn from_le(bytes: &[u8]) -> Self {
        bf16::from_le_bytes(bytes.try_into().expect("2 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[bf16; LANES]) -> L::F32 {
        lanes.load_bf16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [bf16; LANES]) {
        lanes.store_bf16(x, to);
    }
}
