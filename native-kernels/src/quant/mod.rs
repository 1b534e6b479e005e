//! The block formats of GGUF, and one of our own, read and written one block at a time.
//!
//! A block is first taken apart into its integers and scales (`blocks`, `super_blocks`, `tables`), which is also what
//! packing needs; dequantising is one multiplication on top. Source of the layouts: `ggml-quants.c` and `gguf-py/gguf/quants.py`
//! of ggml.

mod blocks;
mod super_blocks;
mod tables;
mod write;

pub(crate) use blocks::Block;
pub(crate) use super_blocks::{SuperBlock, SuperBlock2, SuperBlock16};
pub(crate) use tables::{CodedBlock, CodedSuperBlock, E2M1, E8M0, IQ4};

use crate::Format;
use half::{bf16, f16};

/// Reads blocks of `format`. The caller has checked the lengths.
pub(crate) fn dequantize(format: Format, src: &[u8], dst: &mut [f32]) {
    match format {
        Format::F32 => each(src, dst, |block, out: &mut [f32; 1]| {
            out[0] = f32::from_le_bytes(*block);
        }),
        Format::F16 => each(src, dst, |block, out: &mut [f32; 1]| {
            out[0] = f16::from_le_bytes(*block).to_f32();
        }),
        Format::BF16 => each(src, dst, |block, out: &mut [f32; 1]| {
            out[0] = bf16::from_le_bytes(*block).to_f32();
        }),
        Format::Q8_0 => each(src, dst, |b, out| Block::read_q8_0(b).dequantize(out)),
        Format::Q4_0 => each(src, dst, |b, out| Block::read_q4_0(b).dequantize(out)),
        Format::Q4_1 => each(src, dst, |b, out| Block::read_q4_1(b).dequantize(out)),
        Format::Q5_0 => each(src, dst, |b, out| Block::read_q5_0(b).dequantize(out)),
        Format::Q5_1 => each(src, dst, |b, out| Block::read_q5_1(b).dequantize(out)),
        Format::Q4K => each(src, dst, |b, out| SuperBlock::read_q4_k(b).dequantize(out)),
        Format::Q5K => each(src, dst, |b, out| SuperBlock::read_q5_k(b).dequantize(out)),
        Format::Q6K => each(src, dst, |b, out| {
            SuperBlock16::read_q6_k(b).dequantize(out)
        }),
        Format::Q2K => each(src, dst, |b, out| SuperBlock2::read(b).dequantize(out)),
        Format::Q3K => each(src, dst, |b, out| {
            SuperBlock16::read_q3_k(b).dequantize(out)
        }),
        Format::Iq4Nl => each(src, dst, |b, out| {
            CodedBlock::read_iq4_nl(b).dequantize(out)
        }),
        Format::Iq4Xs => each(src, dst, |b, out| CodedSuperBlock::read(b).dequantize(out)),
        Format::Mxfp4 => each(src, dst, |b, out| CodedBlock::read_mxfp4(b).dequantize(out)),
        Format::Int4 => each(src, dst, |b, out| Block::read_int4(b).dequantize(out)),
    }
}

/// Writes blocks of `format`. The caller has checked the lengths.
pub(crate) fn quantize(format: Format, src: &[f32], dst: &mut [u8]) {
    match format {
        Format::F32 => each_mut(src, dst, |x: &[f32; 1], out| *out = x[0].to_le_bytes()),
        Format::F16 => each_mut(src, dst, |x: &[f32; 1], out| {
            *out = f16::from_f32(x[0]).to_le_bytes();
        }),
        Format::BF16 => each_mut(src, dst, |x: &[f32; 1], out| {
            *out = bf16::from_f32(x[0]).to_le_bytes();
        }),
        Format::Q8_0 => each_mut(src, dst, write::q8_0),
        Format::Q4_0 => each_mut(src, dst, write::q4_0),
        Format::Q4_1 => each_mut(src, dst, write::q4_1),
        Format::Q5_0
        | Format::Q5_1
        | Format::Q2K
        | Format::Q3K
        | Format::Q4K
        | Format::Q5K
        | Format::Q6K
        | Format::Iq4Nl
        | Format::Iq4Xs
        | Format::Mxfp4
        | Format::Int4 => panic!("{format} cannot be written"),
    }
}

fn each<const B: usize, const N: usize>(
    src: &[u8],
    dst: &mut [f32],
    read: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, out) in src.as_chunks().0.iter().zip(dst.as_chunks_mut().0) {
        read(block, out);
    }
}

fn each_mut<const B: usize, const N: usize>(
    src: &[f32],
    dst: &mut [u8],
    write: impl Fn(&[f32; N], &mut [u8; B]),
) {
    for (values, block) in src.as_chunks().0.iter().zip(dst.as_chunks_mut().0) {
        write(values, block);
    }
}
