//! The native floor: a platform that exists with no WebAssembly at all, and serves where no other can.
//!
//! It picks by the catalogue's rank alone. Knowing better is what platforms are for.

use crate::facts::{Engine, Facts, ModelFacts};
use crate::needs::{Need, reasons_against, takes_block};
use crate::policy::{
    AttentionQuery, Availability, BatchDefaults, BlockPlan, BlockQuery, Capabilities, Choice,
    ConfigCheck, Decision, Descriptor, Diagnostic, EngineConfig, Fault, GraphPlan, GraphQuery,
    KernelRefusal, KvTransferPlan, OpShape, ParallelPlan, Patch, Platform, Probe, RankBinding,
    Rejected, Rule, Severity, ThreadPlan, Value,
};
use crate::registry::FLOOR_ID;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The floor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor;

fn note(code: &str, message: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Info,
        code: code.to_owned(),
        path: None,
        message,
        fix: None,
    }
}

fn by_rank(facts: &Facts, need: &Need<'_>) -> Decision {
    let of_op = facts.kernels.iter().filter(|kernel| kernel.op == need.op);
    let mut valid = Vec::new();
    let mut rejected = Vec::new();
    for kernel in of_op {
        let mut reasons = reasons_against(kernel, need, facts, &[]);
        if kernel.provider != "cpu" && reasons.is_empty() {
            reasons.push(format!(
                "runs on {}: the floor serves the CPU only",
                kernel.provider
            ));
        }
        match reasons.is_empty() {
            true => valid.push(kernel),
            false => rejected.push(Rejected {
                id: kernel.id.clone(),
                reasons,
            }),
        }
    }
    valid.sort_by(|a, b| b.rank.cmp(&a.rank).then(a.id.cmp(&b.id)));
    let Some(best) = valid.first() else {
        return Decision::Refused(KernelRefusal {
            message: format!("no kernel of the catalogue can do {} here", need.op),
            ranking: Vec::new(),
            rejected,
        });
    };
    Decision::Chosen(Choice {
        selected: best.id.clone(),
        notes: vec![note(
            "rank",
            format!(
                "the highest rank of the catalogue, {}, of what runs here",
                best.rank
            ),
        )],
        ranking: valid.iter().map(|kernel| kernel.id.clone()).collect(),
        rejected,
    })
}

/// One logical CPU of each allowed core, those of one NUMA node side by side.
pub(crate) fn one_cpu_a_core(facts: &Facts) -> Vec<u32> {
    let mut cpus: Vec<_> = facts
        .host
        .logical
        .iter()
        .filter(|cpu| cpu.allowed)
        .collect();
    cpus.sort_by_key(|cpu| (cpu.node, cpu.id));
    let mut cores = BTreeSet::new();
    cpus.into_iter()
        .filter(|cpu| cores.insert(cpu.core))
        .map(|cpu| cpu.id)
        .collect()
}

impl Platform for Floor {
    fn describe(&mut self) -> Result<Descriptor, Fault> {
        Ok(Descriptor {
            id: FLOOR_ID.to_owned(),
            vendor: "Plinth".to_owned(),
            version: Engine::plinth().version,
            visible_devices_var: None,
            env_allowlist: Vec::new(),
            extra_quantization: Vec::new(),
        })
    }

    fn probe(&mut self, _: &Arc<Facts>) -> Result<Probe, Fault> {
        Ok(Probe::Available(Availability {
            devices: Vec::new(),
            score: 0,
            notes: Vec::new(),
        }))
    }

    fn device_capabilities(
        &mut self,
        _: &Arc<Facts>,
        _: u32,
    ) -> Result<Result<Capabilities, Diagnostic>, Fault> {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        Ok(Ok(Capabilities {
            dtypes: names(&["f32"]),
            kv_dtypes: names(&["f16", "bf16", "f32", "q8"]),
            quantization: None,
            fp8_format: None,
            graph: false,
            features: Vec::new(),
            capability: None,
        }))
    }

    fn batch_defaults(&mut self, _: &Arc<Facts>, _: &str, _: u32) -> Result<BatchDefaults, Fault> {
        let reason =
            "on a CPU larger steps are no faster, and others wait longer for their next token"
                .to_owned();
        Ok(BatchDefaults {
            max_batched_tokens: 512,
            max_num_seqs: 64,
            reason,
        })
    }

    fn default_config(
        &mut self,
        facts: &Arc<Facts>,
        _: &ModelFacts,
        config: &EngineConfig,
    ) -> Result<Vec<Patch>, Fault> {
        // What another engine drafts with is its own affair, and a default is none where the user has decided.
        let open = !config.user_set.iter().any(|set| set == "spec-tokens");
        let drafts = Patch {
            path: "spec-tokens".to_owned(),
            value: Value::Unsigned(7),
            reason:
                "guessed from a text's own repetitions: eight rows share one pass over the weights"
                    .to_owned(),
            overrides_user: false,
        };
        let wanted = open && facts.engine.name == "plinth";
        Ok(wanted.then_some(drafts).into_iter().collect())
    }

    fn check_config(
        &mut self,
        _: &Arc<Facts>,
        _: &ModelFacts,
        _: &EngineConfig,
    ) -> Result<ConfigCheck, Fault> {
        Ok(ConfigCheck::default())
    }

    fn select_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault> {
        let need = Need {
            op: "attention",
            phase: Some(&query.phase),
            dtype: Some(&query.dtype),
            kv_dtype: Some(&query.kv_dtype),
            head_size: Some(query.head_size),
            block_size: query.block_size,
            format: None,
            traits: &query.traits,
            capability: None,
        };
        Ok(prefer(by_rank(facts, &need), query.requested.as_deref()))
    }

    fn select_vision_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault> {
        self.select_attention(facts, query)
    }

    fn choose_block_size(
        &mut self,
        facts: &Arc<Facts>,
        query: &BlockQuery,
    ) -> Result<Result<BlockPlan, Diagnostic>, Fault> {
        let chosen: Vec<_> = facts
            .kernels
            .iter()
            .filter(|kernel| query.backends.contains(&kernel.id))
            .collect();
        let wanted = query.config.block_size;
        let candidates = if wanted > 0 {
            vec![wanted]
        } else {
            vec![16, 32, 64, 128, 256]
        };
        let fits = |size: &u32| chosen.iter().all(|kernel| takes_block(kernel, *size));
        Ok(match candidates.into_iter().find(fits) {
            Some(block_size) => Ok(BlockPlan {
                block_size,
                state_block_size: None,
                state_page_padded: None,
                kv_layout: chosen
                    .first()
                    .and_then(|kernel| kernel.kv_layouts.first().cloned()),
                reason:
                    "the smallest that the chosen kernels take: prefixes are shared in whole blocks"
                        .to_owned(),
            }),
            None => Err(Diagnostic {
                severity: Severity::Reject,
                code: "block-size".to_owned(),
                path: Some("block-size".to_owned()),
                message: format!(
                    "no KV block size suits {}",
                    crate::text::list(&query.backends)
                ),
                fix: (wanted > 0).then(|| "leave --block-size out".to_owned()),
            }),
        })
    }

    fn kernel_priority(
        &mut self,
        facts: &Arc<Facts>,
        op: &str,
        shape: &OpShape,
    ) -> Result<Decision, Fault> {
        let need = Need {
            op,
            dtype: Some(&shape.dtype),
            format: shape.format.as_deref(),
            traits: &shape.traits,
            ..Need::default()
        };
        Ok(by_rank(facts, &need))
    }

    fn plan_graphs(
        &mut self,
        _: &Arc<Facts>,
        _: &GraphQuery,
    ) -> Result<Result<GraphPlan, Diagnostic>, Fault> {
        let notes = vec![note(
            "no-graphs",
            "a CPU has no graphs to capture".to_owned(),
        )];
        Ok(Ok(GraphPlan {
            notes,
            ..GraphPlan::default()
        }))
    }

    fn plan_memory(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
        _: u32,
        used: u64,
    ) -> Result<Result<u64, Diagnostic>, Fault> {
        let usable = facts.host.budget.memory as f64 * config.memory_utilization;
        Ok(Ok((usable as u64).saturating_sub(used)))
    }

    fn plan_threads(
        &mut self,
        facts: &Arc<Facts>,
        ranks: u32,
    ) -> Result<Result<ThreadPlan, Diagnostic>, Fault> {
        let mut cpus = one_cpu_a_core(facts);
        cpus.truncate(facts.host.budget.threads as usize);
        let share = cpus.len() / ranks.max(1) as usize;
        let bind = |rank: u32| RankBinding {
            rank,
            cpus: cpus
                .iter()
                .copied()
                .skip(rank as usize * share)
                .take(share)
                .collect(),
            numa: None,
        };
        Ok(Ok(ThreadPlan {
            ranks: (0..ranks).map(bind).collect(),
            reserved: Vec::new(),
            notes: vec![note("threads", facts.host.budget.threads_limit.clone())],
        }))
    }

    fn plan_parallel(&mut self, _: &Arc<Facts>, _: &EngineConfig) -> Result<ParallelPlan, Fault> {
        Ok(ParallelPlan {
            collective: "none".to_owned(),
            custom_allreduce: false,
            executor: "in-process".to_owned(),
            gather: "none".to_owned(),
            notes: Vec::new(),
        })
    }

    fn plan_kv_transfer(&mut self, _: &Arc<Facts>) -> Result<KvTransferPlan, Fault> {
        Ok(KvTransferPlan::default())
    }

    fn request_rules(&mut self, _: &Arc<Facts>, _: &EngineConfig) -> Result<Vec<Rule>, Fault> {
        Ok(Vec::new())
    }
}

/// Selects the kernel that the user asked for, if it is valid.
fn prefer(decision: Decision, requested: Option<&str>) -> Decision {
    match (decision, requested) {
        (Decision::Chosen(mut choice), Some(requested))
            if choice.ranking.iter().any(|id| id == requested) =>
        {
            choice.selected = requested.to_owned();
            choice.notes = vec![note("requested", "it was asked for".to_owned())];
            Decision::Chosen(choice)
        }
        (decision, _) => decision,
    }
}
