//! Every kernel of this build, as facts.

use plinth_platform::facts::{BlockSize, GraphSupport, HeadRange, HeadSize, Kernel};

/// Weight formats whose elements are floating-point numbers.
const FLOAT: &[&str] = &["f32", "f16", "bf16"];
/// Weight formats of small integers and scales.
const QUANTISED: &[&str] = &[
    "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
    "iq4_xs", "mxfp4", "int4",
];

/// What an instruction set is called, what it needs (names of Linux), and how fast it is among the others.
struct Tier {
    name: &'static str,
    requires: &'static [&'static [&'static str]],
    rank: u32,
}

const PORTABLE: Tier = Tier {
    name: "portable",
    requires: &[],
    rank: 100,
};

#[cfg(target_arch = "x86_64")]
const WITH_AVX2: &[&str] = &["avx2", "fma", "f16c"];
#[cfg(target_arch = "x86_64")]
const WITH_AVX512: &[&str] = &["avx512f", "avx512bw", "avx512vl"];

#[cfg(target_arch = "x86_64")]
const AVX2: Tier = Tier {
    name: "avx2",
    requires: &[WITH_AVX2],
    rank: 200,
};

#[cfg(target_arch = "x86_64")]
const AVX_VNNI: Tier = Tier {
    name: "avx-vnni",
    requires: &[WITH_AVX2, &["avx_vnni"]],
    rank: 250,
};

#[cfg(target_arch = "x86_64")]
const AVX512: Tier = Tier {
    name: "avx512",
    requires: &[WITH_AVX2, WITH_AVX512],
    rank: 300,
};

#[cfg(target_arch = "x86_64")]
const AVX512_VNNI: Tier = Tier {
    name: "avx512-vnni",
    requires: &[WITH_AVX2, WITH_AVX512, &["avx512_vnni"]],
    rank: 400,
};

#[cfg(target_arch = "x86_64")]
const AVX512_BF16: Tier = Tier {
    name: "avx512-bf16",
    requires: &[WITH_AVX2, WITH_AVX512, &["avx512_bf16"]],
    rank: 350,
};

#[cfg(target_arch = "x86_64")]
const AMX: Tier = Tier {
    name: "amx",
    requires: &[
        WITH_AVX2,
        WITH_AVX512,
        &["avx512_bf16", "amx_tile", "amx_bf16"],
    ],
    rank: 500,
};

#[cfg(target_arch = "x86_64")]
const AMX_INT8: Tier = Tier {
    name: "amx-int8",
    requires: &[WITH_AVX2, WITH_AVX512, &["amx_tile", "amx_int8"]],
    // Behind tiles of `bf16` until it has been measured beside them.
    rank: 450,
};

#[cfg(target_arch = "aarch64")]
const NEON: Tier = Tier {
    name: "neon",
    requires: &[&["asimd"]],
    rank: 200,
};

#[cfg(target_arch = "aarch64")]
const NEON_DOTPROD: Tier = Tier {
    name: "neon-dotprod",
    requires: &[&["asimd", "asimddp"]],
    rank: 300,
};

#[cfg(target_arch = "aarch64")]
const NEON_I8MM: Tier = Tier {
    name: "neon-i8mm",
    requires: &[&["asimd", "asimddp", "i8mm"]],
    rank: 400,
};

/// Tiers with products of `bf16`, best first.
const TILE_TIERS: &[Tier] = &[
    #[cfg(target_arch = "x86_64")]
    AMX,
    #[cfg(target_arch = "x86_64")]
    AVX512_BF16,
];

/// Tiers with products of pairs of `bf16`, best first.
const PAIRS_TIERS: &[Tier] = &[
    #[cfg(target_arch = "x86_64")]
    AVX512_BF16,
];

/// Tiers with products of tiles of bytes, best first.
const SPAN_TIERS: &[Tier] = &[
    #[cfg(target_arch = "x86_64")]
    AMX_INT8,
    #[cfg(target_arch = "x86_64")]
    AVX512_VNNI,
];

/// Tiers with float lanes, best first.
const LANE_TIERS: &[Tier] = &[
    #[cfg(target_arch = "x86_64")]
    AVX512,
    #[cfg(target_arch = "x86_64")]
    AVX2,
    #[cfg(target_arch = "aarch64")]
    NEON,
    PORTABLE,
];

/// Tiers with integer dot products, best first.
const INT8_TIERS: &[Tier] = &[
    #[cfg(target_arch = "x86_64")]
    AVX512_VNNI,
    #[cfg(target_arch = "x86_64")]
    AVX_VNNI,
    #[cfg(target_arch = "x86_64")]
    AVX2,
    #[cfg(target_arch = "aarch64")]
    NEON_I8MM,
    #[cfg(target_arch = "aarch64")]
    NEON_DOTPROD,
    #[cfg(target_arch = "aarch64")]
    NEON,
    PORTABLE,
];

/// Every kernel of this build, whether or not this machine can run it.
///
/// Ids are `cpu.<instruction set>.<operation>[.<kind>]`:
///
/// | id ends in | does |
/// |---|---|
/// | `attention` | attention over the paged cache, prefill and decode; in tiles of `bf16` only runs of many queries |
/// | `attention.pairs` | attention of few queries over a cache of `bf16`, two numbers at a time |
/// | `matmul.float` | products with float weights, bit for bit the same in any batch |
/// | `matmul.int8` | products with quantised weights and activations quantised to 8 bits, 32 at a time |
/// | `matmul.int8-span` | products with weights quantised to less than 8 bits brought to 8 bits, 256 at a time, and activations, 64 at a time, for steps of many rows |
/// | `matmul.dequant` | products with quantised weights dequantised exactly and float activations: for evaluation |
/// | `matmul.bf16` | products in tiles of `bf16`, for steps of many rows |
/// | `elementwise` | norms, rotation, activation functions |
pub fn catalog() -> Vec<Kernel> {
    let lanes = LANE_TIERS.iter().flat_map(|tier| {
        [
            attention(tier),
            matmul(tier, "float", FLOAT, tier.rank, &["batch-invariant"]),
            // Always behind the integer kernel of any tier: it is for those who ask for exactness.
            matmul(
                tier,
                "dequant",
                QUANTISED,
                tier.rank / 10,
                &["batch-invariant"],
            ),
            elementwise(tier),
        ]
    });
    let int8 = INT8_TIERS.iter().map(|tier| {
        let traits = &["batch-invariant", "int8-activations"];
        matmul(tier, "int8", QUANTISED, tier.rank, traits)
    });
    let tiles = TILE_TIERS.iter().flat_map(|tier| {
        // Who keeps weights or keys as `f32` wants their digits.
        let formats = [&FLOAT[1..], QUANTISED].concat();
        let traits = names(&["bf16-activations", "many-rows", "only:many-rows", "prefill"]);
        [
            Kernel {
                kv_dtypes: names(&["f16", "bf16", "q8"]),
                traits: names(&[
                    "bf16-activations",
                    "causal",
                    "prefill",
                    "sinks",
                    "sliding-window",
                    "soft-cap",
                ]),
                ..attention(tier)
            },
            Kernel {
                formats: names(&formats),
                traits,
                ..kernel(tier, "matmul", "matmul.bf16".to_owned(), tier.rank)
            },
        ]
    });
    // Weights that have 8 bits of their own would lose of them: on 16,000 tokens the perplexity of SmolLM2-135M in Q8_0
    // rose by 0.3 %, in Q4_1 by 0.13 %.
    let fewer_bits = || QUANTISED.iter().filter(|format| **format != "q8_0");
    let spans = SPAN_TIERS.iter().map(|tier| Kernel {
        formats: fewer_bits().map(|&format| format.to_owned()).collect(),
        traits: names(&[
            "int8-activations",
            "int8-weights",
            "many-rows",
            "only:many-rows",
            "prefill",
        ]),
        // Ahead of what the same instructions do for few rows.
        ..kernel(
            tier,
            "matmul",
            "matmul.int8-span".to_owned(),
            tier.rank + 25,
        )
    });
    let pairs = PAIRS_TIERS.iter().map(|tier| Kernel {
        // Elements of another type would have to be rounded each time they are read.
        kv_dtypes: names(&["bf16"]),
        traits: names(&[
            "batch-invariant",
            "bf16-activations",
            "causal",
            "decode",
            "sinks",
            "sliding-window",
            "soft-cap",
        ]),
        id: format!("cpu.{}.attention.pairs", tier.name),
        ..attention(tier)
    });
    lanes
        .chain(int8)
        .chain(tiles)
        .chain(spans)
        .chain(pairs)
        .collect()
}

fn attention(tier: &Tier) -> Kernel {
    Kernel {
        kv_dtypes: names(&["f32", "f16", "bf16", "q8"]),
        block_sizes: vec![BlockSize::MultipleOf(16)],
        traits: names(&[
            "batch-invariant",
            "causal",
            "decode",
            "prefill",
            "sinks",
            "sliding-window",
            "soft-cap",
        ]),
        kv_layouts: names(&["paged-tile16"]),
        head_sizes: vec![HeadSize::Range(HeadRange {
            least: 8,
            most: 256,
            multiple_of: 8,
        })],
        ..kernel(tier, "attention", "attention".to_owned(), tier.rank)
    }
}

fn matmul(tier: &Tier, kind: &str, formats: &[&str], rank: u32, traits: &[&str]) -> Kernel {
    let mut traits = names(traits);
    traits.extend(names(&["decode", "many-rows", "prefill"]));
    Kernel {
        formats: names(formats),
        traits,
        ..kernel(tier, "matmul", format!("matmul.{kind}"), rank)
    }
}

fn elementwise(tier: &Tier) -> Kernel {
    Kernel {
        traits: names(&["batch-invariant"]),
        ..kernel(tier, "elementwise", "elementwise".to_owned(), tier.rank)
    }
}

fn kernel(tier: &Tier, op: &str, name: String, rank: u32) -> Kernel {
    Kernel {
        id: format!("cpu.{}.{name}", tier.name),
        op: op.to_owned(),
        provider: "cpu".to_owned(),
        dtypes: names(&["f32"]),
        kv_dtypes: Vec::new(),
        formats: Vec::new(),
        head_sizes: Vec::new(),
        block_sizes: Vec::new(),
        requires: names(&tier.requires.concat()),
        traits: Vec::new(),
        graph: GraphSupport::Never,
        kv_layouts: Vec::new(),
        rank,
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use std::collections::HashSet;

    #[test]
    fn ids_are_unique() {
        let catalog = catalog();
        let ids: HashSet<_> = catalog.iter().map(|kernel| &kernel.id).collect();
        assert_eq!(ids.len(), catalog.len());
    }

    #[test]
    fn every_format_has_a_kernel_that_needs_nothing() {
        for format in Format::ALL {
            let name = format.name().to_owned();
            assert!(
                catalog()
                    .iter()
                    .any(|kernel| kernel.requires.is_empty() && kernel.formats.contains(&name)),
                "{format}"
            );
        }
    }

    #[test]
    fn an_exact_kernel_is_never_the_fastest() {
        let catalog = catalog();
        let ranks = |kind: &str| -> Vec<u32> {
            let of_kind = catalog.iter().filter(|kernel| kernel.id.ends_with(kind));
            of_kind.map(|kernel| kernel.rank).collect()
        };
        let (exact, int8) = (ranks("matmul.dequant"), ranks("matmul.int8"));
        assert!(exact.iter().max() < int8.iter().min());
    }
}
