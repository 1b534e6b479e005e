//! Blocks of 32: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Int4.

use half::f16;

/// A block of 32 taken apart: element `i` is `scale * (q[i] - zero) + min`, each step rounded to `f32`.
pub(crate) struct Block {
    /// Multiplier.
    pub scale: f16,
    /// Addend; zero in the formats that have none.
    pub min: f16,
    /// The integer that stands for zero; zero in the formats that have a minimum.
    pub zero: u8,
    /// The integers, unsigned.
    pub q: [u8; 32],
}

impl Block {
    /// `scale: f16, q: [i8; 32]`; the sign bit flipped makes the integers unsigned.
    pub fn read_q8_0(block: &[u8; 34]) -> Self {
        let (scale, q) = split::<2, 32, 34>(block);
        Self::around_zero(f16::from_le_bytes(*scale), 128, q.map(|byte| byte ^ 0x80))
    }

    /// `scale: f16, nibbles: [u8; 16]`.
    pub fn read_q4_0(block: &[u8; 18]) -> Self {
        let (scale, bytes) = split::<2, 16, 18>(block);
        Self::around_zero(f16::from_le_bytes(*scale), 8, nibbles(bytes))
    }

    /// `scale: f16, min: f16, nibbles: [u8; 16]`.
    pub fn read_q4_1(block: &[u8; 20]) -> Self {
        let (head, bytes) = split::<4, 16, 20>(block);
        Self::from_min(head, nibbles(bytes))
    }

    /// `scale: f16, high bits: u32, nibbles: [u8; 16]`.
    pub fn read_q5_0(block: &[u8; 22]) -> Self {
        let (head, bytes) = split::<6, 16, 22>(block);
        let (scale, high) = split::<2, 4, 6>(head);
        let q = with_high_bits(nibbles(bytes), u32::from_le_bytes(*high));
        Self::around_zero(f16::from_le_bytes(*scale), 16, q)
    }

    /// `scale: f16, min: f16, high bits: u32, nibbles: [u8; 16]`.
    pub fn read_q5_1(block: &[u8; 24]) -> Self {
        let (head, bytes) = split::<8, 16, 24>(block);
        let (scale_min, high) = split::<4, 4, 8>(head);
        let q = with_high_bits(nibbles(bytes), u32::from_le_bytes(*high));
        Self::from_min(scale_min, q)
    }

    /// `scale: f16, zero: u8, nibbles: [u8; 16]`.
    pub fn read_int4(block: &[u8; 19]) -> Self {
        let (head, bytes) = split::<3, 16, 19>(block);
        let (scale, zero) = split::<2, 1, 3>(head);
        Self::around_zero(f16::from_le_bytes(*scale), zero[0], nibbles(bytes))
    }

    pub fn dequantize(&self, out: &mut [f32; 32]) {
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (out, &q) in out.iter_mut().zip(&self.q) {
            *out = scale * (i32::from(q) - i32::from(self.zero)) as f32 + min;
        }
    }

    fn around_zero(scale: f16, zero: u8, q: [u8; 32]) -> Self {
        Self {
            scale,
            // Negative zero is the addend that changes no value, not even the sign of a zero.
            min: f16::NEG_ZERO,
            zero,
            q,
        }
    }

    fn from_min(scale_min: &[u8; 4], q: [u8; 32]) -> Self {
        let (scale, min) = split::<2, 2, 4>(scale_min);
        Self {
            scale: f16::from_le_bytes(*scale),
            min: f16::from_le_bytes(*min),
            zero: 0,
            q,
        }
    }
}

/// Splits an array in two; `N` is `A + B`, which every caller spells out.
pub(super) fn split<const A: usize, const B: usize, const N: usize>(
    array: &[u8; N],
) -> (&[u8; A], &[u8; B]) {
    const { assert!(A + B == N) };
    let (a, rest) = array.split_first_chunk().expect("A <= N");
    (a, rest.first_chunk().expect("B == N - A"))
}

/// Low nibbles are elements 0..16, high nibbles 16..32.
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| {
        let byte = bytes[i % 16];
        if i < 16 { byte & 0x0f } else { byte >> 4 }
    })
}

fn with_high_bits(mut q: [u8; 32], high: u32) -> [u8; 32] {
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) as u8) << 4;
    }
    q
}
