//! A platform that does what no platform may do, for the host's tests: the attack is named by the first entry of the
//! facts' environment, `ATTACK`.

use plinth_sdk::prelude::*;
use std::hint::black_box;

struct Hostile;

fn attack(facts: &Facts) -> &str {
    facts
        .env
        .iter()
        .find(|(name, _)| name == "ATTACK")
        .map_or("none", |(_, attack)| attack)
}

/// Recursion that the compiler can make no loop of, with nothing in memory: it fills the host's stack.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    if depth == u64::MAX {
        0
    } else {
        recurse(depth + 1).rotate_left(3) ^ depth
    }
}

/// Recursion with large frames, which lie in the guest's own memory: it runs out of that.
fn recurse_with_frames(depth: u64) -> u64 {
    let frame = [depth; 64];
    black_box(&frame);
    if depth == u64::MAX {
        0
    } else {
        recurse_with_frames(depth + 1) + frame[(depth % 64) as usize]
    }
}

/// Attacks in the middle of an answer to `probe`.
fn run(attack: &str) -> Vec<Diagnostic> {
    let long = |message: String| vec![reject("long", message, None)];
    match attack {
        "loop" => loop {
            black_box(0);
        },
        "loop-of-logs" => loop {
            log(Severity::Info, "again");
        },
        "grow" => {
            let mut kept = Vec::new();
            loop {
                kept.push(black_box(vec![1u8; 1 << 20]));
            }
        }
        "recurse" => vec![info("depth", recurse(attack.len() as u64).to_string())],
        "large-frames" => vec![info("depth", recurse_with_frames(0).to_string())],
        "trap" => std::process::abort(),
        "huge-log" => {
            log(Severity::Info, &"x".repeat(1 << 20));
            Vec::new()
        }
        "log-flood" => {
            (0..1000).for_each(|n| log(Severity::Warn, &format!("line {n}")));
            Vec::new()
        }
        "long-answer" => long("x".repeat(8 << 20)),
        "many-answers" => (0..100_000).map(|_| info("", "")).collect(),
        "control-characters" => long("\u{1b}[2J\u{202e}harmless".to_owned()),
        _ => Vec::new(),
    }
}

/// A choice that is a lie, of the kernels that the floor would rank.
fn lie(attack: &str, facts: &Facts, honest: Decision) -> Decision {
    let Decision::Chosen(mut choice) = honest else {
        return honest;
    };
    match attack {
        "unknown-kernel" => {
            choice.selected = "cpu.quantum.attention".to_owned();
            choice.ranking.insert(0, choice.selected.clone());
        }
        "not-in-ranking" => choice.ranking.clear(),
        "unmet-kernel" => {
            let unmet = |kernel: &&Kernel| {
                kernel.op == "attention"
                    && kernel
                        .requires
                        .iter()
                        .any(|need| !facts.host.isa.contains(need))
            };
            if let Some(kernel) = facts.kernels.iter().find(unmet) {
                choice.rejected.retain(|rejected| rejected.id != kernel.id);
                choice.selected = kernel.id.clone();
                choice.ranking.insert(0, kernel.id.clone());
            }
        }
        "wrong-operation" => {
            if let Some(kernel) = facts
                .kernels
                .iter()
                .find(|kernel| kernel.op == "elementwise")
            {
                choice.selected = kernel.id.clone();
                choice.ranking = vec![kernel.id.clone()];
            }
        }
        "rejected-without-reason" => {
            if let Some(id) = choice.ranking.pop() {
                choice.rejected.push(Rejected {
                    id,
                    reasons: Vec::new(),
                });
            }
        }
        _ => {}
    }
    Decision::Chosen(choice)
}

impl Platform for Hostile {
    fn describe() -> Descriptor {
        let env_allowlist = vec!["ATTACK".to_owned()];
        Descriptor {
            env_allowlist,
            ..descriptor("hostile", "Nobody", (0, 0, 1))
        }
    }

    fn probe(facts: &Facts) -> ProbeResult {
        let notes = run(attack(facts));
        match attack(facts) {
            "no-reason" => ProbeResult::Unavailable(Vec::new()),
            "no-such-device" => ProbeResult::Available(Availability {
                devices: vec![7],
                score: 10,
                notes,
            }),
            _ => ProbeResult::Available(Availability {
                devices: Vec::new(),
                score: 10,
                notes,
            }),
        }
    }

    fn check_config(facts: &Facts, _: &ModelFacts, _: &EngineConfig) -> CheckResult {
        let change = |path: &str, value| patch(path, value, "because");
        let patches = match attack(facts) {
            "unknown-setting" => vec![change("colour", Value::Text("red".to_owned()))],
            "out-of-range" => vec![change("max-num-seqs", Value::Unsigned(0))],
            "wrong-type" => vec![change("max-num-seqs", Value::Text("many".to_owned()))],
            "nan" => vec![change("memory-utilization", Value::Float(f64::NAN))],
            "twice" => vec![
                change("max-num-seqs", Value::Unsigned(1)),
                change("max-num-seqs", Value::Unsigned(2)),
            ],
            "against-the-user" => vec![change("max-num-seqs", Value::Unsigned(3))],
            "override" => vec![Patch {
                overrides_user: true,
                ..change("max-num-seqs", Value::Unsigned(3))
            }],
            _ => Vec::new(),
        };
        CheckResult {
            patches,
            diagnostics: Vec::new(),
        }
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        if attack(facts) == "loop-in-decision" {
            run("loop");
        }
        let need = Need {
            op: "attention",
            provider: "cpu",
            phase: Some(&query.phase),
            dtype: Some(&query.dtype),
            kv_dtype: Some(&query.kv_dtype),
            head_size: Some(query.head_size),
            ..Need::default()
        };
        lie(
            attack(facts),
            facts,
            decide(facts, &need, |_| "honest".to_owned()),
        )
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let block_size = match attack(facts) {
            "block-zero" => 0,
            "block-odd" => 17,
            _ => 16,
        };
        let _ = query;
        Ok(BlockPlan {
            block_size,
            state_block_size: None,
            state_page_padded: None,
            kv_layout: None,
            reason: "because".to_owned(),
        })
    }

    fn plan_memory(facts: &Facts, _: &EngineConfig, _: u32, _: u64) -> Result<u64, Diagnostic> {
        match attack(facts) {
            "all-memory" => Ok(u64::MAX),
            _ => Ok(facts.host.budget.memory / 4),
        }
    }

    fn plan_threads(facts: &Facts, _: u32) -> Result<ThreadPlan, Diagnostic> {
        let mut cpus = one_cpu_a_core(facts);
        cpus.truncate(facts.host.budget.threads as usize);
        match attack(facts) {
            "many-threads" => cpus = (0..4096).collect(),
            "unknown-cpu" => cpus[0] = 9999,
            _ => {}
        }
        let ranks = vec![RankBinding {
            rank: 0,
            cpus,
            numa: None,
        }];
        Ok(ThreadPlan {
            ranks,
            reserved: Vec::new(),
            notes: Vec::new(),
        })
    }

    fn request_rules(facts: &Facts, _: &EngineConfig) -> Vec<Rule> {
        let rule = |field: &str, op: &str, operand: &str| Rule {
            field: field.to_owned(),
            op: op.to_owned(),
            operand: operand.to_owned(),
            prompts: None,
            message: "because".to_owned(),
        };
        match attack(facts) {
            "unknown-rule" => vec![rule("colour", "at-most", "1")],
            "senseless-rule" => vec![rule("prompt-len", "at-most", "much")],
            _ => Vec::new(),
        }
    }
}

export_platform!(Hostile);
