//! The rotary frequencies of a model.

use plinth_formats::{ModelConfig, RopeConfig, RopeKind, RopeLayout, RopeScaling};
use plinth_kernels::RopeTable;
use std::f64::consts::TAU;
use std::sync::Arc;

/// The angles of the layers of a model.
pub(super) struct Ropes {
    main: Arc<RopeTable>,
    local: Option<Arc<RopeTable>>,
}

impl Ropes {
    /// Those of a kind.
    pub fn of(&self, kind: RopeKind) -> Arc<RopeTable> {
        match (kind, &self.local) {
            (RopeKind::Local, Some(local)) => local.clone(),
            _ => self.main.clone(),
        }
    }
}

/// The angles of every position below `max_len`.
pub(super) fn tables(config: &ModelConfig, max_len: usize) -> Ropes {
    let mut main = config.rope.clone();
    // Decided once for all sequences, as llama.cpp does: keys in the cache must all be turned alike.
    if let Some(long) = &config.long_rope
        && max_len > long.original_context
    {
        main.scaling = RopeScaling::Factors(long.factors.clone());
    }
    Ropes {
        main: Arc::new(table(config, &main, max_len)),
        local: (config.local_rope.as_ref()).map(|rope| Arc::new(table(config, rope, max_len))),
    }
}

fn table(config: &ModelConfig, rope: &RopeConfig, max_len: usize) -> RopeTable {
    let layout = match rope.layout {
        RopeLayout::Interleaved => plinth_kernels::RopeLayout::Interleaved,
        RopeLayout::HalfSplit => plinth_kernels::RopeLayout::HalfSplit,
    };
    let frequencies = inverse_frequencies(rope);
    let table = RopeTable::new(config.head_dim, rope.dims, &frequencies, layout, max_len);
    table.magnified(config.rope_magnitude)
}

/// One frequency a rotated pair, in radians a position.
fn inverse_frequencies(rope: &RopeConfig) -> Vec<f32> {
    let pairs = rope.dims / 2;
    let plain = |i: usize| f64::from(rope.base).powf(-2.0 * i as f64 / rope.dims as f64);
    let scaled = |i: usize| match &rope.scaling {
        RopeScaling::None => plain(i),
        RopeScaling::Linear { factor } => plain(i) / f64::from(*factor),
        RopeScaling::Factors(factors) => plain(i) / f64::from(factors[i]),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let wavelengths = f64::from(*original_context) * plain(i) / TAU;
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            // How much of the frequency stays: none below `low` wavelengths in the first context, all above `high`.
            let kept = ((wavelengths - low) / (high - low)).clamp(0.0, 1.0);
            plain(i) * (kept + (1.0 - kept) / f64::from(*factor))
        }
        RopeScaling::Yarn { factor, .. } => {
            let (first, last) = yarn_blend(rope);
            let kept = 1.0 - ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            plain(i) * (kept + (1.0 - kept) / f64::from(*factor))
        }
    };
    (0..pairs).map(|i| scaled(i) as f32).collect()
}

/// The pairs between which YaRN blends: those that turn `beta_fast` and `beta_slow` times within the first context.
fn yarn_blend(rope: &RopeConfig) -> (f64, f64) {
    let RopeScaling::Yarn {
        beta_fast,
        beta_slow,
        original_context,
        truncate,
        ..
    } = rope.scaling
    else {
        unreachable!("asked for YaRN only")
    };
    let dims = rope.dims as f64;
    let turning = |times: f32| {
        let wavelength = f64::from(original_context) / f64::from(times);
        dims * (wavelength / TAU).ln() / (2.0 * f64::from(rope.base).ln())
    };
    let (first, last) = match (turning(beta_fast), turning(beta_slow)) {
        (first, last) if truncate => (first.floor(), last.ceil()),
        ends => ends,
    };
    // As in transformers, which compares the last with elements and not with pairs of them, and lets no two be equal.
    let (first, last) = (first.max(0.0), last.min(dims - 1.0));
    (first, if first == last { last + 0.001 } else { last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling) -> Vec<f32> {
        inverse_frequencies(&RopeConfig {
            base: 500_000.0,
            dims: 128,
            layout: RopeLayout::HalfSplit,
            scaling,
        })
    }

    fn llama3() -> RopeScaling {
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        }
    }

    /// Values of Llama 3.1's published code (`apply_scaling` in `llama_models`), computed with it in single precision.
    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let (plain, scaled) = (frequencies(RopeScaling::None), frequencies(llama3()));
        assert_eq!(
            plain[..20],
            scaled[..20],
            "wavelengths of up to 8192 / 4 positions are kept"
        );
        for i in 36..64 {
            assert!(
                (scaled[i] - plain[i] / 8.0).abs() <= 1e-6 * scaled[i],
                "frequency {i}"
            );
        }
        assert!(
            scaled.windows(2).all(|pair| pair[1] < pair[0]),
            "the blend does not turn around"
        );
    }

    /// Values of the formula in transformers 5.19 (`_compute_yarn_parameters`), in double precision, for gpt-oss and for a
    /// model whose blend ends at whole pairs.
    #[test]
    fn yarn_blends_between_two_pairs() {
        let of = |base: f32, dims: usize, context: f32, truncate: bool| {
            let rope = |scaling| RopeConfig {
                base,
                dims,
                layout: RopeLayout::HalfSplit,
                scaling,
            };
            let plain = inverse_frequencies(&rope(RopeScaling::None));
            let scaled = inverse_frequencies(&rope(RopeScaling::Yarn {
                factor: 32.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: context,
                truncate,
            }));
            let pairs = plain.iter().zip(&scaled);
            pairs
                .map(|(plain, scaled)| plain / scaled)
                .collect::<Vec<f32>>()
        };
        for (ratios, kept, divided, between) in [
            (
                of(150_000.0, 64, 4096.0, false),
                8,
                18,
                [(9, 1.1043), (13, 2.044_49), (17, 13.757_52)],
            ),
            (
                of(1_000_000.0, 128, 32_768.0, true),
                23,
                40,
                [(24, 1.060_43), (31, 1.837_84), (39, 11.333_33)],
            ),
        ] {
            assert!(
                ratios[..=kept]
                    .iter()
                    .all(|ratio| (ratio - 1.0).abs() < 1e-6)
            );
            assert!(
                ratios[divided..]
                    .iter()
                    .all(|ratio| (ratio - 32.0).abs() < 1e-4)
            );
            for (pair, expected) in between {
                let found = ratios[pair];
                assert!((found / expected - 1.0).abs() < 1e-5, "{pair}: {found}");
            }
        }
    }

    #[test]
    fn linear_scaling_and_factors_divide() {
        let plain = frequencies(RopeScaling::None);
        let linear = frequencies(RopeScaling::Linear { factor: 4.0 });
        let factors = frequencies(RopeScaling::Factors(vec![4.0; 64]));
        assert_eq!(linear, factors);
        assert_eq!(linear[10], plain[10] / 4.0);
    }
}
