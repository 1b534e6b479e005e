//! Blocks whose 4-bit codes number the values of a table: IQ4_NL, IQ4_XS, MXFP4.

use super::blocks::{nibbles, split};
use half::f16;

/// What the codes of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl` of ggml).
pub(crate) const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// What the codes of MXFP4 stand for, doubled: floats with a sign, two bits of exponent and one of mantissa (OCP
/// Microscaling Formats 1.0, section 5.3.3).
pub(crate) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A power of two: the exponent with a bias of 127 (OCP Microscaling Formats 1.0, section 5.4.1).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct E8M0(pub u8);

impl E8M0 {
    /// Half of it, which goes with the doubled values; a subnormal number where the exponent is least. The pattern of
    /// all ones, which the standard says is not a number, is one more exponent to ggml, and so it is here.
    pub fn half(self) -> f32 {
        f32::from_bits(match u32::from(self.0) {
            exponent @ 0..2 => 0x0020_0000 << exponent,
            exponent => (exponent - 1) << 23,
        })
    }
}

/// IQ4_NL or MXFP4 taken apart: element `i` is `scale * table[codes[i]]`, rounded to `f32`.
pub(crate) struct CodedBlock<S> {
    /// Multiplier.
    pub scale: S,
    /// Numbers of values in the table.
    pub codes: [u8; 32],
}

impl CodedBlock<f16> {
    /// `scale: f16, nibbles: [u8; 16]`.
    pub fn read_iq4_nl(block: &[u8; 18]) -> Self {
        let (scale, bytes) = split::<2, 16, 18>(block);
        Self {
            scale: f16::from_le_bytes(*scale),
            codes: nibbles(bytes),
        }
    }

    pub fn dequantize(&self, out: &mut [f32; 32]) {
        scale_values(self.scale.to_f32(), &IQ4, &self.codes, out);
    }
}

impl CodedBlock<E8M0> {
    /// `scale: E8M0, nibbles: [u8; 16]`.
    pub fn read_mxfp4(block: &[u8; 17]) -> Self {
        let (scale, bytes) = split::<1, 16, 17>(block);
        Self {
            scale: E8M0(scale[0]),
            codes: nibbles(bytes),
        }
    }

    pub fn dequantize(&self, out: &mut [f32; 32]) {
        scale_values(self.scale.half(), &E2M1, &self.codes, out);
    }
}

/// IQ4_XS taken apart: element `32 g + i` is `(scale * scales[g]) * IQ4[codes[32 g + i]]`, each step rounded to `f32`.
pub(crate) struct CodedSuperBlock {
    /// Multiplier of the scales.
    pub scale: f16,
    /// One 6-bit scale for each group of 32, less 32.
    pub scales: [i8; 8],
    /// Numbers of values in the table.
    pub codes: [u8; 256],
}

impl CodedSuperBlock {
    /// `scale: f16, high pairs of bits of the scales: u16, low nibbles of the scales: [u8; 4], nibbles: [u8; 128]`.
    pub fn read(block: &[u8; 136]) -> Self {
        let (head, rest) = split::<4, 132, 136>(block);
        let (scale, high) = split::<2, 2, 4>(head);
        let (low, bytes) = split::<4, 128, 132>(rest);
        let high = u16::from_le_bytes(*high);
        Self {
            scale: f16::from_le_bytes(*scale),
            scales: std::array::from_fn(|g| {
                let low = low[g / 2] >> (4 * (g % 2)) & 0x0f;
                let high = (high >> (2 * g) & 3) as u8;
                (low | high << 4) as i8 - 32
            }),
            codes: std::array::from_fn(|i| {
                let byte = bytes[i / 32 * 16 + i % 16];
                if i % 32 < 16 { byte & 0x0f } else { byte >> 4 }
            }),
        }
    }

    pub fn dequantize(&self, out: &mut [f32; 256]) {
        for (g, (out, codes)) in out
            .chunks_exact_mut(32)
            .zip(self.codes.chunks_exact(32))
            .enumerate()
        {
            let scale = self.scale.to_f32() * f32::from(self.scales[g]);
            scale_values(scale, &IQ4, codes, out);
        }
    }
}

fn scale_values(scale: f32, table: &[i8; 16], codes: &[u8], out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = scale * f32::from(table[usize::from(code)]);
    }
}
