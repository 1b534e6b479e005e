//! Super-blocks of 256: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

use super::blocks::split;
use half::f16;

/// Q4_K or Q5_K taken apart: element `32 g + i` is `(scale * scales[g]) * q - (min * mins[g])`, each step rounded to
/// `f32`.
pub(crate) struct SuperBlock {
    /// Multiplier of the scales.
    pub scale: f16,
    /// Multiplier of the minima.
    pub min: f16,
    /// One 6-bit scale for each group of 32.
    pub scales: [u8; 8],
    /// One 6-bit minimum for each group of 32.
    pub mins: [u8; 8],
    /// The integers.
    pub q: [u8; 256],
}

impl SuperBlock {
    /// `scale: f16, min: f16, scales and minima: [u8; 12], nibbles: [u8; 128]`.
    pub fn read_q4_k(block: &[u8; 144]) -> Self {
        let (head, nibbles) = split::<16, 128, 144>(block);
        Self::read(head, nibbles)
    }

    /// As Q4_K with `high bits: [u8; 32]` before the nibbles: bit `g` of byte `i` belongs to element `32 g + i`.
    pub fn read_q5_k(block: &[u8; 176]) -> Self {
        let (head, rest) = split::<16, 160, 176>(block);
        let (high, nibbles) = split::<32, 128, 160>(rest);
        let mut read = Self::read(head, nibbles);
        for (i, q) in read.q.iter_mut().enumerate() {
            *q |= (high[i % 32] >> (i / 32) & 1) << 4;
        }
        read
    }

    pub fn dequantize(&self, out: &mut [f32; 256]) {
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let scale = scale * f32::from(self.scales[i / 32]);
            let min = min * f32::from(self.mins[i / 32]);
            *out = scale * f32::from(self.q[i]) - min;
        }
    }

    /// In each 32 bytes of nibbles the low ones are one group and the high ones the next.
    fn read(head: &[u8; 16], nibbles: &[u8; 128]) -> Self {
        let (scale_min, packed) = split::<4, 12, 16>(head);
        let (scale, min) = split::<2, 2, 4>(scale_min);
        let (scales, mins) = unpack_scales(packed);
        Self {
            scale: f16::from_le_bytes(*scale),
            min: f16::from_le_bytes(*min),
            scales,
            mins,
            q: std::array::from_fn(|i| {
                let byte = nibbles[i / 64 * 32 + i % 32];
                if i % 64 < 32 { byte & 0x0f } else { byte >> 4 }
            }),
        }
    }
}

/// Eight scales and eight minima of 6 bits in 12 bytes:
/// ```text
/// byte     0..4            4..8            8..12
/// bits 7-6 scale 4..8 hi   min 4..8 hi     bits 7-4  min 4..8 lo
/// bits 5-0 scale 0..4      min 0..4        bits 3-0  scale 4..8 lo
/// ```
fn unpack_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (a, b, c) = (packed[i], packed[4 + i], packed[8 + i]);
        scales[i] = a & 0x3f;
        mins[i] = b & 0x3f;
        scales[4 + i] = (c & 0x0f) | (a >> 6) << 4;
        mins[4 + i] = (c >> 4) | (b >> 6) << 4;
    }
    (scales, mins)
}

/// Q3_K or Q6_K taken apart: element `16 g + i` is `(scale * scales[g]) * (q - zero)`, each step rounded to `f32`.
pub(crate) struct SuperBlock16 {
    /// Multiplier of the scales.
    pub scale: f16,
    /// One scale for each group of 16.
    pub scales: [i8; 16],
    /// The integer that stands for zero.
    pub zero: u8,
    /// The integers, unsigned.
    pub q: [u8; 256],
}

impl SuperBlock16 {
    /// `high bits: [u8; 32], low pairs of bits: [u8; 64], scales: [u8; 12], scale: f16`.
    ///
    /// Bit `g` of byte `i` of the high bits belongs to element `32 g + i`.
    pub fn read_q3_k(block: &[u8; 110]) -> Self {
        let (high, rest) = split::<32, 78, 110>(block);
        let (pairs, rest) = split::<64, 14, 78>(rest);
        let (scales, scale) = split::<12, 2, 14>(rest);
        Self {
            scale: f16::from_le_bytes(*scale),
            scales: unpack_signed_scales(scales),
            zero: 4,
            q: std::array::from_fn(|i| {
                let high = high[i % 32] >> (i / 32) & 1;
                pair(pairs, i) | high << 2
            }),
        }
    }

    /// `low nibbles: [u8; 128], high pairs of bits: [u8; 64], scales: [i8; 16], scale: f16`.
    ///
    /// Each half of 128 elements uses 64 bytes of nibbles and 32 of pairs: group `j` of 32 (0 to 3) has the low (0, 1)
    /// or high (2, 3) nibbles of bytes `32 (j % 2) ..` and bits `2 j` of the pairs.
    pub fn read_q6_k(block: &[u8; 210]) -> Self {
        let (low, rest) = split::<128, 82, 210>(block);
        let (high, rest) = split::<64, 18, 82>(rest);
        let (scales, scale) = split::<16, 2, 18>(rest);
        Self {
            scale: f16::from_le_bytes(*scale),
            scales: scales.map(|byte| byte as i8),
            zero: 32,
            q: std::array::from_fn(|i| {
                let (half, j, lane) = (i / 128, i % 128 / 32, i % 32);
                let nibble = low[64 * half + 32 * (j % 2) + lane] >> (4 * (j / 2)) & 0x0f;
                nibble | pair(high, i) << 4
            }),
        }
    }

    pub fn dequantize(&self, out: &mut [f32; 256]) {
        let scale = self.scale.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let scale = scale * f32::from(self.scales[i / 16]);
            *out = scale * (i32::from(self.q[i]) - i32::from(self.zero)) as f32;
        }
    }
}

/// The two bits of element `i`: each half of 128 elements has 32 bytes, whose bits `2 j` are group `j` of 32.
fn pair(pairs: &[u8; 64], i: usize) -> u8 {
    pairs[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// Sixteen scales of 6 bits, less 32: the low nibbles of eight bytes, then the high ones, are the low bits; bits `2 j` of
/// the four bytes after them are the high bits of scales `4 j` to `4 j + 3`.
fn unpack_signed_scales(packed: &[u8; 12]) -> [i8; 16] {
    let (low, high) = split::<8, 4, 12>(packed);
    std::array::from_fn(|g| {
        let low = low[g % 8] >> (4 * (g / 8)) & 0x0f;
        let high = high[g % 4] >> (2 * (g / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Q2_K taken apart: element `16 g + i` is `(scale * s) * q - (min * m)`, each step rounded to `f32`, with `s` the low
/// and `m` the high nibble of `factors[g]`.
pub(crate) struct SuperBlock2 {
    /// Multiplier of the scales.
    pub scale: f16,
    /// Multiplier of the minima.
    pub min: f16,
    /// A 4-bit scale and a 4-bit minimum for each group of 16.
    pub factors: [u8; 16],
    /// The integers.
    pub q: [u8; 256],
}

impl SuperBlock2 {
    /// `factors: [u8; 16], pairs of bits: [u8; 64], scale: f16, min: f16`.
    pub fn read(block: &[u8; 84]) -> Self {
        let (factors, rest) = split::<16, 68, 84>(block);
        let (pairs, scale_min) = split::<64, 4, 68>(rest);
        let (scale, min) = split::<2, 2, 4>(scale_min);
        Self {
            scale: f16::from_le_bytes(*scale),
            min: f16::from_le_bytes(*min),
            factors: *factors,
            q: std::array::from_fn(|i| pair(pairs, i)),
        }
    }

    pub fn dequantize(&self, out: &mut [f32; 256]) {
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let factors = self.factors[i / 16];
            let scale = scale * f32::from(factors & 0x0f);
            let min = min * f32::from(factors >> 4);
            *out = scale * f32::from(self.q[i]) - min;
        }
    }
}
