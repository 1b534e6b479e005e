//! The quantisers: byte for byte those of ggml's reference (`quantize_row_*_ref`).

use half::f16;

/// Scale: largest magnitude / 127; halves round away from zero.
pub(super) fn q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    let (head, q) = block.split_first_chunk_mut().expect("34 bytes");
    *head = f16::from_f32(scale).to_le_bytes();
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse).round() as i8 as u8;
    }
}

/// Scale: the element of largest magnitude (the first of equals) becomes -8.
pub(super) fn q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    let scale = extreme / -8.0;
    let inverse = inverse(scale);
    let (head, nibbles) = block.split_first_chunk_mut().expect("18 bytes");
    *head = f16::from_f32(scale).to_le_bytes();
    write_nibbles(nibbles, x.map(|x| x * inverse + 8.5));
}

/// Scale and minimum: the range of the block in 15 steps.
pub(super) fn q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let mut min = f32::MAX;
    let mut max = f32::MIN;
    for &x in x {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
    }
    let scale = (max - min) / 15.0;
    let inverse = inverse(scale);
    let (head, nibbles) = block.split_first_chunk_mut().expect("20 bytes");
    let (scale, min_bytes) = (
        f16::from_f32(scale).to_le_bytes(),
        f16::from_f32(min).to_le_bytes(),
    );
    *head = [scale[0], scale[1], min_bytes[0], min_bytes[1]];
    write_nibbles(nibbles, x.map(|x| (x - min) * inverse + 0.5));
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Elements 0..16 become the low nibbles, 16..32 the high ones; each is truncated and capped at 15.
fn write_nibbles(bytes: &mut [u8], x: [f32; 32]) {
    let q = x.map(|x| (x as i8).min(15) as u8 & 0x0f);
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = q[i] | q[16 + i] << 4;
    }
}
