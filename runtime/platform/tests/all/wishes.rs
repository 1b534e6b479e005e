//! What the user wants is had, or refused with the reason, never changed silently.

use crate::fake::{Fake, machine, model, patch, registry};
use plinth_platform::plan::{DecidedBy, Plan};
use plinth_platform::policy::{BatchDefaults, EngineConfig, Patch, Value};
use plinth_platform::resolve::{Refusal, Wishes, resolve};

fn set(config: EngineConfig, fields: &[&str]) -> Wishes {
    Wishes {
        config: EngineConfig {
            user_set: fields.iter().map(|&field| field.to_owned()).collect(),
            ..config
        },
        ..Wishes::default()
    }
}

fn planned(fake: Fake, wishes: &Wishes) -> Result<Plan, Box<Refusal>> {
    let mut registry = registry([fake.built_in()]);
    resolve(&mut registry, &machine().into(), &model("q4_1"), wishes)
}

fn setting<'a>(plan: &'a Plan, path: &str) -> &'a plinth_platform::plan::Setting {
    let found = plan.settings.iter().find(|setting| setting.path == path);
    found.unwrap_or_else(|| panic!("no setting {path}"))
}

#[test]
fn the_user_beats_the_platform_which_beats_the_floor() {
    let fake = Fake {
        batch: Some(BatchDefaults {
            max_batched_tokens: 777,
            max_num_seqs: 7,
            reason: "seven is a good number".to_owned(),
        }),
        ..Fake::new("cpu")
    };
    let config = EngineConfig {
        max_num_seqs: 5,
        ..EngineConfig::default()
    };
    let plan = planned(fake, &set(config, &["max-num-seqs"])).expect("it serves");
    assert_eq!(
        (plan.engine.max_num_seqs, plan.engine.max_batched_tokens),
        (5, 777)
    );
    assert_eq!(setting(&plan, "max-num-seqs").by, DecidedBy::User);
    assert_eq!(setting(&plan, "max-batched-tokens").by, DecidedBy::Platform);
    assert_eq!(
        setting(&plan, "max-batched-tokens").reason,
        "seven is a good number"
    );
    assert_eq!(setting(&plan, "prefix-caching").by, DecidedBy::Floor);
}

#[test]
fn a_platform_overrides_only_when_it_says_so_and_the_user_allows_it() {
    let overriding = Fake {
        check: plinth_platform::policy::ConfigCheck {
            patches: vec![Patch {
                overrides_user: true,
                ..patch("prefix-caching", Value::Boolean(true))
            }],
            diagnostics: Vec::new(),
        },
        ..Fake::new("cpu")
    };
    let config = EngineConfig {
        prefix_caching: false,
        ..EngineConfig::default()
    };
    let mut wishes = set(config, &["prefix-caching"]);
    let text = planned(overriding.clone(), &wishes)
        .expect_err("refused")
        .to_string();
    for expected in ["prefix-caching", "a test wants it", "--allow-overrides"] {
        assert!(text.contains(expected), "{text}");
    }
    wishes.allow_overrides = true;
    let plan = planned(overriding, &wishes).expect("allowed");
    let setting = setting(&plan, "prefix-caching");
    assert_eq!(setting.by, DecidedBy::Platform);
    assert_eq!(
        setting.wanted,
        Some(Value::Boolean(false)),
        "what was wanted is kept"
    );
    assert!(
        plan.findings
            .iter()
            .any(|finding| finding.diagnostic.code == "overridden")
    );
}

#[test]
fn a_default_may_not_override_whatever_is_allowed() {
    let fake = Fake {
        defaults: vec![Patch {
            overrides_user: true,
            ..patch("max-num-seqs", Value::Unsigned(3))
        }],
        ..Fake::new("acme")
    };
    let config = EngineConfig {
        max_num_seqs: 5,
        ..EngineConfig::default()
    };
    let wishes = Wishes {
        allow_overrides: true,
        platform: Some("acme".to_owned()),
        ..set(config, &["max-num-seqs"])
    };
    let mut registry = registry([fake.file("/acme")]);
    let refusal =
        resolve(&mut registry, &machine().into(), &model("q4_1"), &wishes).expect_err("no");
    assert!(refusal.to_string().contains("default-config"), "{refusal}");
}

#[test]
fn a_wish_out_of_range_is_refused_with_the_range() {
    type Change = fn(&mut EngineConfig);
    let cases: [(&str, Change, &str); 7] = [
        ("max-num-seqs", |c| c.max_num_seqs = 0, "found 0"),
        ("block-size", |c| c.block_size = 0, "found 0"),
        ("threads", |c| c.threads = 100_000, "100,000"),
        ("dtype", |c| c.dtype = "f8".to_owned(), "f8"),
        ("kv-dtype", |c| c.kv_dtype = "int4".to_owned(), "int4"),
        ("memory-utilization", |c| c.memory_utilization = 1.5, "1.5"),
        (
            "memory-utilization",
            |c| c.memory_utilization = f64::NAN,
            "NaN",
        ),
    ];
    for (path, change, found) in cases {
        let mut config = EngineConfig::default();
        change(&mut config);
        let refusal = planned(Fake::new("cpu"), &set(config, &[path])).expect_err(path);
        let text = refusal.to_string();
        assert!(
            text.contains(path) && text.contains(found),
            "{path}: {text}"
        );
        assert!(text.contains("expected"), "{path}: {text}");
    }
}

#[test]
fn a_kernel_that_was_asked_for_is_had_or_the_reason_is_told() {
    let wanting = |kernel: &str| {
        let config = EngineConfig {
            attention_backend: Some(kernel.to_owned()),
            ..EngineConfig::default()
        };
        planned(Fake::new("cpu"), &set(config, &["attention-backend"]))
    };
    let plan = wanting("cpu.portable.attention").expect("it runs everywhere");
    assert_eq!(plan.kernels.attention_decode, "cpu.portable.attention");
    assert!(
        plan.selections
            .iter()
            .any(|selection| selection.by == DecidedBy::User)
    );
    let text = wanting("cpu.avx512.attention")
        .expect_err("no AVX-512")
        .to_string();
    assert!(text.contains("avx512f"), "{text}");
    let text = wanting("cpu.quantum.attention")
        .expect_err("unknown")
        .to_string();
    assert!(text.contains("there is no such kernel"), "{text}");
}

#[test]
fn more_context_than_the_model_has_is_refused_with_both_numbers() {
    let config = EngineConfig {
        max_model_len: 100_000,
        ..EngineConfig::default()
    };
    let refusal = planned(Fake::new("cpu"), &set(config, &["max-model-len"])).expect_err("long");
    let text = refusal.to_string();
    assert!(text.contains("100,000") && text.contains("8,192"), "{text}");
}
