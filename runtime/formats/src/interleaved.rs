//! The matrices of experts as folders of gpt-oss hold them: gates and ups row by row in one tensor, floats transposed,
//! MXFP4 with its scales in a tensor of their own.

use crate::tensors::Place;
use plinth_kernels::Format;

/// How to pick a matrix or a vector out of the bytes of its place, which it may share with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interleaved {
    /// Floats: the element of row r and column c is number `first + r * rows_apart + c * cols_apart`.
    Floats {
        first: usize,
        rows_apart: usize,
        cols_apart: usize,
    },
    /// MXFP4: row r is number `first + r * rows_apart`. A row is blocks of 16 bytes, element 2 i of a block in the lower
    /// half of byte i; its scales lie in `scales`, one byte a block.
    Mxfp4 {
        first: usize,
        rows_apart: usize,
        scales: Place,
    },
}

/// Bytes of a block without its scale.
const BLOCK: usize = 16;

impl Interleaved {
    /// Writes the tensor into `out` as any other of its format lies there. `scales` is empty for floats.
    ///
    /// **Panics** if the bytes are not as many as the tensor needs: it was checked when the file was opened.
    pub fn gather(
        &self,
        (rows, cols): (usize, usize),
        format: Format,
        (bytes, scales): (&[u8], &[u8]),
        out: &mut Vec<u8>,
    ) {
        out.clear();
        match *self {
            Interleaved::Floats {
                first,
                rows_apart,
                cols_apart,
            } => {
                let size = format.block_bytes();
                out.reserve(rows * cols * size);
                for row in 0..rows {
                    for col in 0..cols {
                        let at = first + row * rows_apart + col * cols_apart;
                        out.extend_from_slice(&bytes[at * size..][..size]);
                    }
                }
            }
            Interleaved::Mxfp4 {
                first, rows_apart, ..
            } => {
                let blocks = cols / 32;
                let stored = bytes.as_chunks::<BLOCK>().0;
                out.reserve(rows * blocks * (1 + BLOCK));
                for row in 0..rows {
                    let at = (first + row * rows_apart) * blocks;
                    for (block, scale) in stored[at..][..blocks].iter().zip(&scales[at..]) {
                        out.push(*scale);
                        out.extend(halves_apart(block));
                    }
                }
            }
        }
    }
}

/// Elements of a block in pairs of neighbours as pairs that are half a block apart, which is how GGUF has them.
fn halves_apart(block: &[u8; BLOCK]) -> [u8; BLOCK] {
    let element = |n: usize| block[n / 2] >> (4 * (n % 2)) & 0x0f;
    std::array::from_fn(|n| element(n) | element(n + BLOCK) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_and_ups_are_told_apart() {
        // Two inputs, each with two gates and two ups: g0 u0 g1 u1.
        let stored: Vec<u8> = [10, 20, 11, 21, 12, 22, 13, 23]
            .iter()
            .flat_map(|x: &u16| x.to_le_bytes())
            .collect();
        let pick = |first| {
            let floats = Interleaved::Floats {
                first,
                rows_apart: 2,
                cols_apart: 4,
            };
            let mut out = vec![9];
            floats.gather((2, 2), Format::BF16, (&stored, &[]), &mut out);
            out.as_chunks()
                .0
                .iter()
                .map(|x| u16::from_le_bytes(*x))
                .collect::<Vec<_>>()
        };
        assert_eq!(pick(0), [10, 12, 11, 13]);
        assert_eq!(pick(1), [20, 22, 21, 23]);
    }

    #[test]
    fn a_block_becomes_one_of_gguf() {
        let place = Place {
            file: 0,
            offset: 0,
            bytes: 3,
        };
        let packed = Interleaved::Mxfp4 {
            first: 1,
            rows_apart: 2,
            scales: place,
        };
        let mut stored = [0; 3 * BLOCK];
        // Elements 0, 1, 16 and 31 of the second row are 0.5, 1, -6 and 4.
        stored[BLOCK..][..BLOCK]
            .copy_from_slice(&[0x21, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0x60]);
        let mut out = Vec::new();
        packed.gather((1, 32), Format::Mxfp4, (&stored, &[0, 128, 0]), &mut out);
        let mut values = [0.0; 32];
        Format::Mxfp4.dequantize(&out, &mut values);
        let found: Vec<_> = values
            .iter()
            .enumerate()
            .filter(|(_, x)| **x != 0.0)
            .collect();
        assert_eq!(found, [(0, &1.0), (1, &2.0), (16, &-12.0), (31, &8.0)]);
    }
}
