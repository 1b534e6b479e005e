//! Reading and writing of weight formats against an independent reader (`fixtures/generate.py` says which).

use plinth_kernels::Format;
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = fixture(name);
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn every_format_is_read_element_for_element() {
    for format in Format::ALL {
        let blocks = fixture(&format!("{format}.blocks"));
        let expected = floats(&format!("{format}.f32"));
        let mut read = vec![0.0; expected.len()];
        format.dequantize(&blocks, &mut read);
        for (i, (read, expected)) in read.iter().zip(&expected).enumerate() {
            assert_eq!(
                read.to_bits(),
                expected.to_bits(),
                "{format}: element {i}: read {read}, expected {expected}"
            );
        }
    }
}

#[test]
fn every_writable_format_is_written_byte_for_byte() {
    let values = floats("values.f32");
    for format in Format::ALL.into_iter().filter(|f| f.can_quantize()) {
        let expected = fixture(&format!("values.{format}"));
        let mut written = vec![0; expected.len()];
        format.quantize(&values, &mut written);
        let differs = written.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{format}: first byte that differs");
    }
}

#[test]
fn what_is_not_a_number_is_written_without_a_panic() {
    for format in Format::ALL.into_iter().filter(|f| f.can_quantize()) {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut values = [1.0; 32];
            values[5] = odd;
            let mut written = vec![0; format.row_bytes(32).unwrap()];
            format.quantize(&values, &mut written);
        }
    }
}

/// Steps that a format cuts the range of a block into, and how much of the largest magnitude the range may be.
fn step(format: Format, values: &[f32]) -> f32 {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = max.abs().max(min.abs());
    // The scale itself is rounded to `f16`: 2^-11 of what it multiplies.
    match format {
        Format::Q8_0 => largest / 127.0 * 0.5 + largest / 2048.0,
        Format::Q4_0 => largest / 8.0 + largest / 2048.0,
        Format::Q4_1 => (max - min) / 15.0 * 0.5 + (max - min + largest) / 2048.0,
        Format::F16 => largest / 2048.0,
        Format::BF16 => largest / 256.0,
        _ => 0.0,
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_within_half_a_step(
        values in prop::collection::vec(-100.0f32..100.0, 32),
    ) {
        for format in Format::ALL.into_iter().filter(|f| f.can_quantize()) {
            let mut bytes = vec![0; format.row_bytes(32).unwrap()];
            format.quantize(&values, &mut bytes);
            let mut read = vec![0.0; 32];
            format.dequantize(&bytes, &mut read);
            let bound = step(format, &values) * 1.001;
            for (value, read) in values.iter().zip(&read) {
                prop_assert!((value - read).abs() <= bound, "{}: {} became {}", format, value, read);
            }
        }
    }
}
