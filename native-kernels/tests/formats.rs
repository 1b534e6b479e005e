//! Reading and writing of weight formats against an independent reader (`fixtures/generate.py` says which).

use plinth_kernels::Format;

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
