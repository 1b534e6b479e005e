//! Whatever the machine, the model and the wishes: a plan whose every part has a reason, or a refusal in words.

use crate::fake::{Fake, machines, model, registry};
use plinth_platform::facts::Facts;
use plinth_platform::plan::Plan;
use plinth_platform::policy::EngineConfig;
use plinth_platform::render;
use plinth_platform::resolve::{Refusal, Wishes, resolve};
use proptest::prelude::*;

fn planned(facts: &Facts, format: &str, wishes: &Wishes) -> Result<Plan, Box<Refusal>> {
    resolve(
        &mut registry([Fake::new("cpu").built_in()]),
        &facts.clone().into(),
        &model(format),
        wishes,
    )
}

#[track_caller]
fn assert_whole(plan: &Plan) {
    for selection in &plan.selections {
        assert!(!selection.reason.is_empty(), "{selection:?}");
        assert_eq!(selection.ranking.first(), Some(&selection.selected));
        assert!(
            selection
                .rejected
                .iter()
                .all(|rejected| !rejected.reasons.is_empty())
        );
    }
    assert!(
        plan.settings
            .iter()
            .all(|setting| !setting.reason.is_empty())
    );
    assert!(!plan.block.reason.is_empty() && !plan.memory.reason.is_empty());
    assert!(!plan.thread_reason.reason.is_empty() && !plan.memory.limit.is_empty());
    assert!(plan.threads.workers >= 1 && plan.memory.num_blocks >= 1);
    assert_eq!(plan.digest.len(), "sha256:".len() + 64);
    assert!(
        render::plan(plan)
            .lines()
            .all(|line| line.chars().count() <= 110)
    );
}

#[test]
fn every_machine_on_file_has_a_whole_plan() {
    for (name, facts) in machines() {
        let plan = planned(&facts, "q4_1", &Wishes::default());
        assert_whole(&plan.unwrap_or_else(|refusal| panic!("{name}: {refusal}")));
    }
}

#[test]
fn a_plan_comes_back_from_json_as_it_was() {
    let (_, facts) = machines().remove(0);
    let plan = planned(&facts, "q4_1", &Wishes::default()).expect("it serves");
    let text = serde_json::to_string(&plan).expect("a plan is JSON");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("and back"), plan);
}

#[test]
fn the_digest_follows_what_is_decided_and_nothing_else() {
    let (_, facts) = machines().remove(0);
    let base = planned(&facts, "q4_1", &Wishes::default()).expect("it serves");
    let mut later = facts.clone();
    later.host.budget.memory -= 1 << 20;
    let same = planned(&later, "q4_1", &Wishes::default()).expect("it serves");
    assert_eq!(
        base.digest, same.digest,
        "free memory changes from minute to minute"
    );
    let config = EngineConfig {
        max_num_seqs: 3,
        user_set: vec!["max-num-seqs".to_owned()],
        ..EngineConfig::default()
    };
    let wishes = Wishes {
        config,
        ..Wishes::default()
    };
    let other = planned(&facts, "q4_1", &wishes).expect("it serves");
    assert_ne!(base.digest, other.digest);
}

fn wish() -> impl Strategy<Value = EngineConfig> {
    let number = prop_oneof![Just(0u32), 1u32..64, Just(u32::MAX), any::<u32>()];
    let name = prop_oneof![
        Just("auto".to_owned()),
        Just("f32".to_owned()),
        Just("f16".to_owned()),
        "[a-z0-9]{0,6}"
    ];
    let share = prop_oneof![0.0f64..2.0, Just(f64::NAN), Just(f64::INFINITY)];
    let fields = (
        (
            number.clone(),
            number.clone(),
            number.clone(),
            number.clone(),
            number,
        ),
        (
            name.clone(),
            name,
            share,
            proptest::option::of(any::<u64>()),
        ),
    );
    fields.prop_map(
        |((len, seqs, batch, block, threads), (dtype, kv_dtype, share, kv))| EngineConfig {
            max_model_len: len,
            max_num_seqs: seqs,
            max_batched_tokens: batch,
            block_size: block,
            threads,
            dtype,
            kv_dtype,
            memory_utilization: share,
            kv_bytes: kv,
            ..EngineConfig::default()
        },
    )
}

const FIELDS: [&str; 9] = [
    "max-model-len",
    "max-num-seqs",
    "max-batched-tokens",
    "block-size",
    "threads",
    "dtype",
    "kv-dtype",
    "memory-utilization",
    "kv-bytes",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_wish_is_granted_or_refused(
        mut config in wish(),
        set in proptest::sample::subsequence(FIELDS.to_vec(), 0..=FIELDS.len()),
        machine in 0usize..5,
        format in proptest::sample::select(vec!["f32", "bf16", "q8_0", "q4_1", "unheard-of"]),
    ) {
        let (_, facts) = machines().remove(machine);
        // What the user did not set is open.
        let default = EngineConfig::default();
        let is_set = |field: &str| set.contains(&field);
        macro_rules! open { ($($name:literal $field:ident),*) => {
            $(if !is_set($name) { config.$field = default.$field.clone(); })*
        } }
        open!["max-model-len" max_model_len, "max-num-seqs" max_num_seqs, "max-batched-tokens" max_batched_tokens,
            "block-size" block_size, "threads" threads, "dtype" dtype, "kv-dtype" kv_dtype,
            "memory-utilization" memory_utilization, "kv-bytes" kv_bytes];
        config.user_set = set.iter().map(|&field| field.to_owned()).collect();
        let wishes = Wishes { config: config.clone(), ..Wishes::default() };
        match planned(&facts, format, &wishes) {
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
            Ok(plan) => {
                assert_whole(&plan);
                // What was wished and granted is what was wished.
                if is_set("max-num-seqs") { prop_assert_eq!(plan.engine.max_num_seqs, config.max_num_seqs); }
                if is_set("block-size") { prop_assert_eq!(plan.engine.block_size, config.block_size); }
                if is_set("threads") { prop_assert_eq!(plan.threads.workers, config.threads); }
                if is_set("max-model-len") {
                    prop_assert_eq!(plan.engine.max_model_len, config.max_model_len);
                }
            }
        }
    }
}
