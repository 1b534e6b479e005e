//! Rotary factors, which a folder holds as numbers of its configuration and a GGUF file as tensors.

use crate::config::{ModelConfig, RopeConfig, RopeScaling};
use crate::gguf::write::Planned;
use plinth_kernels::Format;
use std::f64::consts::TAU;

/// A tensor of factors.
pub(crate) struct FactorTensor {
    pub planned: Planned,
    pub values: Vec<f32>,
}

impl FactorTensor {
    fn new(name: &str, values: Vec<f32>) -> Self {
        let planned = Planned {
            name: name.to_owned(),
            format: Format::F32,
            rows: 1,
            cols: values.len(),
            matrices: 1,
        };
        Self { planned, values }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// Those of a model.
pub(crate) fn tensors(config: &ModelConfig) -> Vec<FactorTensor> {
    let plain = match &config.rope.scaling {
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } => {
            return Vec::new();
        }
        RopeScaling::Factors(factors) => factors.clone(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let divided = |frequency: f64| {
                let wavelengths = f64::from(*original_context) * frequency / TAU;
                let kept = ((wavelengths - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 / (kept + (1.0 - kept) / f64::from(*factor))) as f32
            };
            frequencies(&config.rope).map(divided).collect()
        }
    };
    match &config.long_rope {
        None => vec![FactorTensor::new("rope_freqs.weight", plain)],
        Some(long) => vec![
            FactorTensor::new("rope_factors_long.weight", long.factors.clone()),
            FactorTensor::new("rope_factors_short.weight", plain),
        ],
    }
}

/// One a rotated pair, in radians a position, before any scaling.
fn frequencies(rope: &RopeConfig) -> impl Iterator<Item = f64> {
    let (base, dims) = (f64::from(rope.base), rope.dims as f64);
    (0..rope.dims / 2).map(move |pair| base.powf(-2.0 * pair as f64 / dims))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RopeLayout, Sizes};

    /// Values of the formula in llama.cpp's converter (`conversion/llama.py`, `generate_extra_tensors`), for Llama 3.1.
    #[test]
    fn llama3_factors_are_1_for_high_frequencies_and_the_factor_for_low_ones() {
        let sizes = Sizes {
            num_layers: 1,
            hidden_size: 128,
            intermediate_size: 128,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 128,
            vocab_size: 8,
            context_length: 131_072,
        };
        let rope = RopeConfig {
            base: 500_000.0,
            dims: 128,
            layout: RopeLayout::HalfSplit,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192.0,
            },
        };
        let tensors = tensors(&ModelConfig::llama(sizes, 1e-5, rope));
        assert_eq!(tensors.len(), 1);
        assert_eq!(tensors[0].planned.name, "rope_freqs.weight");
        let values = &tensors[0].values;
        assert!(values[..29].iter().all(|&factor| factor == 1.0));
        assert!(values[35..].iter().all(|&factor| factor == 8.0));
        let blended = [1.2075, 1.5534, 2.0263, 2.6945, 3.6843, 5.2573];
        for (found, expected) in values[29..35].iter().zip(blended) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
    }
}
