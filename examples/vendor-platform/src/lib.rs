//! A vendor's platform: Acme sells boxes, has measured them, and ships what it learnt as a component.
//!
//! Acme and its figures are made up. What is real is how little it takes: one table, and four answers that differ from the
//! defaults of the SDK.

use plinth_sdk::prelude::*;

/// A box that Acme sells.
struct Appliance {
    /// As the order form calls it: `ACME_APPLIANCE=rack-2`, for machines that do not say what they are.
    name: &'static str,
    /// Part of the processor's name.
    cpu: &'static str,
    /// The attention kernel that was fastest, where it can serve.
    attention: &'static str,
    /// Tokens a step, and sequences at once.
    batch: (u32, u32),
}

const APPLIANCES: [Appliance; 2] = [
    Appliance {
        name: "rack-2",
        cpu: "Xeon(R) Platinum 8480",
        attention: "cpu.avx2.attention",
        batch: (4096, 32),
    },
    Appliance {
        name: "desk-1",
        cpu: "EPYC 74F3",
        attention: "cpu.portable.attention",
        batch: (1024, 8),
    },
];

fn appliance(facts: &Facts) -> Option<&'static Appliance> {
    let named = facts.env.iter().find(|(name, _)| name == "ACME_APPLIANCE");
    APPLIANCES.iter().find(|known| match named {
        Some((_, name)) => name == known.name,
        None => facts.host.model.contains(known.cpu),
    })
}

struct Acme;

impl Platform for Acme {
    fn describe() -> Descriptor {
        Descriptor {
            env_allowlist: vec!["ACME_APPLIANCE".to_owned()],
            ..descriptor("acme", "Acme Inc.", (1, 0, 0))
        }
    }

    fn probe(facts: &Facts) -> ProbeResult {
        match appliance(facts) {
            Some(known) => ProbeResult::Available(Availability {
                devices: Vec::new(),
                score: 20,
                notes: vec![info("appliance", format!("an Acme {}", known.name))],
            }),
            None => ProbeResult::Unavailable(vec![reject(
                "unknown-machine",
                format!("'{}' is not a machine that Acme sells", facts.host.model),
                Some("set ACME_APPLIANCE to rack-2 or desk-1 if it is one".to_owned()),
            )]),
        }
    }

    fn batch_defaults(facts: &Facts, _: &str, _: u32) -> BatchPlan {
        let (tokens, sequences) = appliance(facts).map_or((2048, 64), |known| known.batch);
        batch(
            tokens,
            sequences,
            "what Acme measured to be best on this box",
        )
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let need = Need {
            preferred: appliance(facts).map(|known| known.attention),
            ..attention_need("cpu", query)
        };
        decide(facts, &need, |kernel| {
            match Some(kernel.id.as_str()) == need.preferred {
                true => "the fastest that Acme measured on this box".to_owned(),
                false => "the best rank of what can serve".to_owned(),
            }
        })
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        block_of(
            facts,
            query,
            &[32],
            "half as many blocks as of 16, for Acme's long prompts",
        )
    }
}

export_platform!(Acme);
