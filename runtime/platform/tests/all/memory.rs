//! The memory budget.

use crate::fake::{Fake, machine, model, registry};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::plan::Plan;
use plinth_platform::policy::EngineConfig;
use plinth_platform::resolve::{Refusal, Wishes, resolve};

fn planned(facts: &Facts, model: &ModelFacts, wishes: &Wishes) -> Result<Plan, Box<Refusal>> {
    resolve(
        &mut registry([Fake::new("cpu").built_in()]),
        &facts.clone().into(),
        model,
        wishes,
    )
}

fn with_memory(bytes: u64) -> Facts {
    let mut facts = machine();
    facts.host.budget.memory = bytes;
    facts.host.budget.memory_limit = "cgroup /job".to_owned();
    facts
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_bytes_limit_and_fix() {
    let refusal = planned(&with_memory(64 << 20), &model("q4_1"), &Wishes::default());
    let text = refusal.expect_err("90 MiB in 64").to_string();
    for expected in ["weights", "57.6 MiB", "cgroup /job", "smaller model"] {
        assert!(text.contains(expected), "expected {expected}: {text}");
    }
}

#[test]
fn the_context_shrinks_to_what_fits_unless_the_user_named_it() {
    let small = with_memory(256 << 20);
    let plan = planned(&small, &model("q4_1"), &Wishes::default()).expect("a part fits");
    assert!(plan.engine.max_model_len < 8192 && plan.engine.max_model_len > 0);
    assert!(plan.memory.kv_tokens >= plan.engine.max_model_len.into());
    let told = plan
        .settings
        .iter()
        .find(|setting| setting.path == "max-model-len");
    assert!(!told.expect("it is listed").reason.is_empty());

    let config = EngineConfig {
        max_model_len: 8192,
        user_set: vec!["max-model-len".to_owned()],
        ..EngineConfig::default()
    };
    let wishes = Wishes {
        config,
        ..Wishes::default()
    };
    let text = planned(&small, &model("q4_1"), &wishes)
        .expect_err("named")
        .to_string();
    assert!(
        text.contains("8,192") && text.contains("--max-model-len"),
        "{text}"
    );
}

#[test]
fn the_budget_adds_up() {
    for memory in [256 << 20, 1 << 30, 3 << 30, 64 << 30] {
        let plan = planned(&with_memory(memory), &model("q4_1"), &Wishes::default());
        let plan = plan.unwrap_or_else(|refusal| panic!("{memory}: {refusal}"));
        let budget = &plan.memory;
        // 30 layers, 3 heads of 64, keys and values, two bytes.
        let block = 2 * 30 * 3 * 64 * 2 * u64::from(plan.engine.block_size);
        assert_eq!(budget.kv_block_bytes, block);
        assert_eq!(budget.kv_bytes, u64::from(budget.num_blocks) * block);
        assert!(budget.weights + budget.activations + budget.kv_bytes <= budget.usable);
        assert!(budget.usable <= budget.available && budget.available == memory);
    }
}

#[test]
fn a_block_of_eight_bits_holds_its_scales() {
    let wishes = Wishes {
        config: EngineConfig {
            kv_dtype: "q8".to_owned(),
            user_set: vec!["kv-dtype".to_owned()],
            ..EngineConfig::default()
        },
        ..Wishes::default()
    };
    let plan = planned(&machine(), &model("q4_1"), &wishes).expect("there is a kernel");
    // 30 layers, keys and values of 3 heads of 64: a byte for each element, and four for what they share.
    let block = 30 * 2 * 3 * (64 + 4) * u64::from(plan.engine.block_size);
    assert_eq!(plan.memory.kv_block_bytes, block);
}

#[test]
fn a_cache_of_a_set_size_has_that_size() {
    let wishes = |bytes: u64| Wishes {
        config: EngineConfig {
            kv_bytes: Some(bytes),
            user_set: vec!["kv-bytes".to_owned()],
            ..EngineConfig::default()
        },
        ..Wishes::default()
    };
    let plan = planned(&machine(), &model("q4_1"), &wishes(1 << 30)).expect("it fits");
    assert!(plan.memory.kv_bytes <= 1 << 30);
    assert!(plan.memory.kv_bytes > (1 << 30) - plan.memory.kv_block_bytes);
    let text = planned(&machine(), &model("q4_1"), &wishes(1 << 50)).expect_err("a PiB");
    assert!(text.to_string().contains("--kv-cache-memory"), "{text}");
}

#[test]
fn absurd_models_are_refused_and_nothing_overflows() {
    let absurd = ModelFacts {
        layers: u32::MAX,
        num_kv_heads: u32::MAX,
        weight_bytes: u64::MAX,
        vocab_size: u32::MAX,
        hidden_size: u32::MAX,
        intermediate_size: u32::MAX,
        max_len: u32::MAX,
        ..model("q4_1")
    };
    assert!(planned(&machine(), &absurd, &Wishes::default()).is_err());
}
