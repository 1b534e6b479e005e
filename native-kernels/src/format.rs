//! Weight formats: their names, the shape of their blocks, and reading and writing them element by element.
//!
//! The block layouts are those of GGUF, but for one that gathers what GPTQ and AWQ checkpoints keep apart. What the kernels read is another layout, made from these once (see `matrix`).

use crate::quant;

/// How the elements of a weight tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper 16 bits of an `f32`.
    BF16,
    /// 32 signed bytes and an `f16` scale.
    Q8_0,
    /// 32 4-bit integers around 8 and an `f16` scale.
    Q4_0,
    /// 32 4-bit integers, an `f16` scale and an `f16` minimum.
    Q4_1,
    /// 32 5-bit integers around 16 and an `f16` scale.
    Q5_0,
    /// 32 5-bit integers, an `f16` scale and an `f16` minimum.
    Q5_1,
    /// 256 2-bit integers; sixteen 4-bit scales and minima times two `f16`.
    Q2K,
    /// 256 3-bit integers around 4; sixteen 6-bit scales around 32 times one `f16`.
    Q3K,
    /// 256 4-bit integers; eight 6-bit scales and minima times two `f16`.
    Q4K,
    /// 256 5-bit integers; eight 6-bit scales and minima times two `f16`.
    Q5K,
    /// 256 6-bit integers around 32; sixteen 8-bit scales times one `f16`.
    Q6K,
    /// 32 4-bit codes for the values of a table, and an `f16` scale.
    Iq4Nl,
    /// 256 4-bit codes for the values of a table; eight 6-bit scales around 32 times one `f16`.
    Iq4Xs,
    /// 32 floats of 4 bits (E2M1), and a power of two as scale (E8M0): OCP Microscaling Formats 1.0.
    Mxfp4,
    /// 32 4-bit integers, an `f16` scale and a zero of their own: what GPTQ and AWQ checkpoints are made into (see
    /// [`int4_block`]). No file holds it.
    Int4,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 17] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Mxfp4,
        Format::Int4,
    ];

    /// The name that facts, plans and command lines use, such as `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::BF16 => "bf16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q2K => "q2_k",
            Format::Q3K => "q3_k",
            Format::Q4K => "q4_k",
            Format::Q5K => "q5_k",
            Format::Q6K => "q6_k",
            Format::Iq4Nl => "iq4_nl",
            Format::Iq4Xs => "iq4_xs",
            Format::Mxfp4 => "mxfp4",
            Format::Int4 => "int4",
        }
    }

    /// The format called `name`; case does not matter.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// Elements in one block.
    pub fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => 32,
            Format::Iq4Nl | Format::Mxfp4 | Format::Int4 => 32,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => 256,
            Format::Iq4Xs => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q2K => 84,
            Format::Q3K => 110,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::Iq4Nl => 18,
            Format::Iq4Xs => 136,
            Format::Mxfp4 => 17,
            Format::Int4 => 19,
        }
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is no whole number of blocks or the product wraps.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Is this one of the formats whose elements are floating-point numbers?
    pub fn is_float(self) -> bool {
        self.block_len() == 1
    }

    /// Reads the blocks of `src` into `dst`, element for element as ggml's reference does.
    ///
    /// **Panics** if `src` is not exactly the bytes of `dst.len()` elements.
    pub fn dequantize(self, src: &[u8], dst: &mut [f32]) {
        self.check_lengths(src.len(), dst.len());
        quant::dequantize(self, src, dst);
    }

    /// Can [`Format::quantize`] write this format?
    pub fn can_quantize(self) -> bool {
        matches!(
            self,
            Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Q4_0 | Format::Q4_1
        )
    }

    /// Writes `src` as blocks into `dst`, byte for byte as ggml's reference does.
    ///
    /// **Panics** if `dst` is not exactly the bytes of `src.len()` elements, or if this format cannot be written
    /// (see [`Format::can_quantize`]).
    pub fn quantize(self, src: &[f32], dst: &mut [u8]) {
        self.check_lengths(dst.len(), src.len());
        quant::quantize(self, src, dst);
    }

    fn check_lengths(self, bytes: usize, elements: usize) {
        let expected = self.row_bytes(elements);
        assert!(
            expected == Some(bytes),
            "{}: {bytes} bytes do not hold {elements} elements (expected {expected:?})",
            self.name(),
        );
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A block of [`Format::Int4`]: element `i` is `scale * (q[i] - zero)`.
///
/// **Units**: `scale` is the bytes of a little-endian `f16`; the integers are 0 to 15.
pub fn int4_block(scale: [u8; 2], zero: u8, q: &[u8; 32]) -> [u8; 19] {
    let mut block = [0; 19];
    let (head, nibbles) = block.split_at_mut(3);
    head.copy_from_slice(&[scale[0], scale[1], zero]);
    for (k, byte) in nibbles.iter_mut().enumerate() {
        *byte = q[k] & 0x0f | q[16 + k] << 4;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_its_place_among_all() {
        for (n, format) in Format::ALL.into_iter().enumerate() {
            assert_eq!(format as usize, n);
        }
    }

    #[test]
    fn names_lead_back_to_their_format() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
            assert_eq!(
                Format::from_name(&format.name().to_uppercase()),
                Some(format)
            );
        }
        assert_eq!(Format::from_name("q4_k_m"), None);
    }

    #[test]
    fn a_row_is_a_whole_number_of_blocks() {
        assert_eq!(Format::Q4_1.row_bytes(576), Some(360));
        assert_eq!(Format::Q4_1.row_bytes(577), None);
        assert_eq!(Format::Q6K.row_bytes(576), None);
        assert_eq!(Format::F32.row_bytes(0), Some(0));
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    #[should_panic(expected = "q8_0: 33 bytes do not hold 32 elements (expected Some(34))")]
    fn lengths_that_disagree_are_named() {
        Format::Q8_0.dequantize(&[0; 33], &mut [0.0; 32]);
    }
}
