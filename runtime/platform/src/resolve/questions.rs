//! The questions to the chosen platform, in their order, each answer checked before the next question.

mod kernels;
mod settings;

use super::choose::{Chosen, facts_for};
use super::{Refusal, Wishes};
use crate::facts::{Facts, ModelFacts};
use crate::floor::Floor;
use crate::memory::{Room, Wish, activation_bytes, budget, weight_bytes};
use crate::plan::{
    ChosenPlatform, DecidedBy, Finding, Origin, Plan, ProbeRecord, ThreadChoice, ThreadReason,
};
use crate::policy::{
    Capabilities, Descriptor, Diagnostic, Fault, Platform, Severity, ThreadPlan, Value,
};
use crate::registry::Registry;
use crate::requirement::Capability;
use crate::settings::Settings;
use crate::{check, digest, text};
use std::sync::Arc;

pub(super) type Answer<T> = Result<T, Box<Refusal>>;

/// All answers, checked: a plan but for what was decided before.
pub(super) struct Draft {
    plan: Plan,
}

impl Draft {
    pub fn into_plan(self, facts: &Facts, model: &ModelFacts, probes: Vec<ProbeRecord>) -> Plan {
        let mut plan = self.plan;
        plan.facts_digest = digest::of_facts(facts);
        plan.model = model.clone();
        plan.probes = probes;
        plan.digest = digest::of_plan(&plan);
        plan
    }
}

/// One platform under questioning.
struct Questions<'a> {
    platform: &'a mut dyn Platform,
    /// As this platform sees them.
    facts: Arc<Facts>,
    model: &'a ModelFacts,
    id: String,
    digest: String,
    devices: Vec<u32>,
    /// Of the first device, as the platform derived it.
    capability: Option<Capability>,
    settings: Settings,
    findings: Vec<Finding>,
    allow_overrides: bool,
}

pub(super) fn ask_all(
    registry: &mut Registry,
    chosen: &Chosen,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    wishes: &Wishes,
) -> Answer<Draft> {
    let mut floor = Floor;
    let (platform, descriptor, origin, digest): (&mut dyn Platform, Descriptor, Origin, String) =
        match chosen.entry {
            None => {
                let descriptor = floor.describe().map_err(Refusal::Fault)?;
                (&mut floor, descriptor, Origin::Floor, String::new())
            }
            Some(n) => {
                let entry = &mut registry.entries()[n];
                let descriptor = entry
                    .descriptor
                    .clone()
                    .expect("a platform that was probed has said who it is");
                let (origin, digest) = (entry.origin.clone(), entry.digest.clone());
                let platform = entry
                    .platform
                    .as_deref_mut()
                    .expect("a refused platform is not chosen");
                (platform, descriptor, origin, digest)
            }
        };
    let facts = facts_for(facts, &descriptor.env_allowlist, &wishes.env);
    let questions = Questions {
        platform,
        id: descriptor.id.clone(),
        digest: digest.clone(),
        model,
        devices: chosen.availability.devices.clone(),
        capability: None,
        settings: Settings::new(wishes.config.clone()),
        findings: Vec::new(),
        allow_overrides: wishes.allow_overrides,
        facts,
    };
    let identity = ChosenPlatform {
        id: descriptor.id,
        vendor: descriptor.vendor,
        version: descriptor.version,
        origin,
        digest,
        devices: chosen.availability.devices.clone(),
        env: questions.facts.env.clone(),
        by: chosen.by,
        reason: chosen.reason.clone(),
    };
    questions.ask(identity, &chosen.availability.notes)
}

impl Questions<'_> {
    fn ask(mut self, platform: ChosenPlatform, notes: &[Diagnostic]) -> Answer<Draft> {
        self.note(notes);
        let capabilities = self.capabilities()?;
        self.check_wishes()?;
        self.batch_defaults()?;
        self.configuration()?;
        self.dtypes(&capabilities)?;
        self.context()?;
        let attention = self.attention()?;
        let block = self.block(&attention)?;
        let mut selections = attention;
        let vision = self.vision()?;
        selections.extend(self.matmul()?);
        selections.push(self.elementwise()?);
        let graphs = self.graphs(&selections)?;
        selections.extend(vision);
        let (threads, thread_reason) = self.threads()?;
        let memory = self.memory()?;
        let config = self.settings.config.clone();
        let parallel = self.said(
            "plan-parallel",
            |p, f| p.plan_parallel(f, &config),
            check::parallel,
        )?;
        let kv_transfer = self.said(
            "plan-kv-transfer",
            |p, f| p.plan_kv_transfer(f),
            check::kv_transfer,
        )?;
        let rules = self.said(
            "request-rules",
            |p, f| p.request_rules(f, &config),
            |rules| check::rules(rules),
        )?;
        let plan = Plan {
            runtime: self.facts.engine.clone(),
            facts_digest: String::new(),
            model: self.model.clone(),
            platform,
            probes: Vec::new(),
            capabilities,
            kernels: kernels::choices(&selections),
            settings: self.settings.list(),
            engine: self.settings.config,
            selections,
            block,
            graphs,
            threads,
            thread_reason,
            memory,
            parallel,
            kv_transfer,
            rules,
            findings: self.findings,
            digest: String::new(),
        };
        Ok(Draft { plan })
    }

    /// Asks, and holds the answer against `check`.
    fn said<T>(
        &mut self,
        question: &str,
        ask: impl FnOnce(&mut dyn Platform, &Arc<Facts>) -> Result<T, Fault>,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> Answer<T> {
        let answer = ask(self.platform, &self.facts).map_err(Refusal::Fault)?;
        check(&answer).map_err(|message| self.bad(question, message))?;
        Ok(answer)
    }

    fn bad(&self, question: &str, message: String) -> Box<Refusal> {
        Box::new(Refusal::BadAnswer {
            platform: self.id.clone(),
            digest: self.digest.clone(),
            question: question.to_owned(),
            message,
        })
    }

    fn rejected(&self, diagnostics: Vec<Diagnostic>) -> Box<Refusal> {
        Box::new(Refusal::Rejected {
            platform: self.id.clone(),
            diagnostics,
        })
    }

    /// A setting that cannot be.
    fn wrong(&self, path: &str, message: String, fix: &str) -> Box<Refusal> {
        let fix = (!fix.is_empty()).then(|| fix.to_owned());
        let code = format!("bad-{path}");
        self.rejected(vec![Diagnostic {
            severity: Severity::Reject,
            code,
            path: Some(path.to_owned()),
            message,
            fix,
        }])
    }

    fn note(&mut self, diagnostics: &[Diagnostic]) {
        let about = &self.id;
        self.findings
            .extend(diagnostics.iter().map(|diagnostic| Finding {
                about: about.clone(),
                diagnostic: diagnostic.clone(),
            }));
    }

    fn warn(&mut self, code: &str, path: &str, message: String, fix: Option<String>) {
        let path = Some(path.to_owned());
        let diagnostic = Diagnostic {
            severity: Severity::Warn,
            code: code.to_owned(),
            path,
            message,
            fix,
        };
        self.findings.push(Finding {
            about: String::new(),
            diagnostic,
        });
    }

    fn capabilities(&mut self) -> Answer<Capabilities> {
        let device = self.devices.first().copied().unwrap_or(0);
        let answer = self.said(
            "device-capabilities",
            |p, f| p.device_capabilities(f, device),
            |_| Ok(()),
        )?;
        let capabilities = answer.map_err(|diagnostic| self.rejected(vec![diagnostic]))?;
        check::capabilities(&capabilities)
            .map_err(|message| self.bad("device-capabilities", message))?;
        self.capability = capabilities.capability;
        Ok(capabilities)
    }

    fn threads(&mut self) -> Answer<(ThreadChoice, ThreadReason)> {
        let answer = self.said("plan-threads", |p, f| p.plan_threads(f, 1), |_| Ok(()))?;
        let ThreadPlan {
            ranks,
            reserved,
            notes,
        } = match answer {
            Ok(plan) => {
                check::threads(&plan, &self.facts)
                    .map_err(|message| self.bad("plan-threads", message))?;
                plan
            }
            Err(diagnostic) => return Err(self.rejected(vec![diagnostic])),
        };
        let (cpus, numa) = ranks
            .into_iter()
            .next()
            .map(|rank| (rank.cpus, rank.numa))
            .unwrap_or_default();
        let info = notes
            .iter()
            .find(|note| note.severity == Severity::Info)
            .map(|note| note.message.clone());
        let budget = self.facts.host.budget.clone();
        let wanted = self.settings.config.threads;
        let (by, workers, reason) = match wanted {
            0 => (
                DecidedBy::Platform,
                cpus.len() as u32,
                info.unwrap_or(budget.threads_limit.clone()),
            ),
            set => (DecidedBy::User, set, "set by the user".to_owned()),
        };
        if wanted > budget.threads {
            let message = format!(
                "{wanted} where this machine is good for {} ({})",
                budget.threads, budget.threads_limit
            );
            self.warn(
                "many-threads",
                "threads",
                message,
                Some(format!("--threads {}", budget.threads)),
            );
        }
        if wanted == 0 {
            self.settings
                .decide("threads", &Value::Unsigned(workers.into()), by, &reason);
        }
        let (cpus, pinning) = match workers as usize <= cpus.len() {
            true => (
                cpus[..workers as usize].to_vec(),
                "a worker stays on its core".to_owned(),
            ),
            false => (
                Vec::new(),
                "not pinned: there are more workers than cores".to_owned(),
            ),
        };
        let nodes = nodes_of(&self.facts, &cpus, numa);
        Ok((
            ThreadChoice {
                workers,
                cpus,
                nodes,
            },
            ThreadReason {
                by,
                reason,
                pinning,
                numa,
                reserved,
            },
        ))
    }

    fn memory(&mut self) -> Answer<crate::plan::MemoryBudget> {
        let config = self.settings.config.clone();
        let device = self.devices.first().copied().unwrap_or(0);
        let used =
            weight_bytes(self.model, &config).saturating_add(activation_bytes(self.model, &config));
        let answer = self.said(
            "plan-memory",
            |p, f| p.plan_memory(f, &config, device, used),
            |_| Ok(()),
        )?;
        let room = Room::of(&self.facts, &self.devices, config.memory_utilization);
        let granted = match answer {
            Ok(bytes) => bytes,
            Err(diagnostic) => return Err(self.rejected(vec![diagnostic])),
        };
        let most = room.usable.saturating_sub(used);
        if granted > most {
            let message = format!(
                "{granted} bytes for the KV cache, expected at most {most} ({})",
                room.limit
            );
            return Err(self.bad("plan-memory", message));
        }
        let len_by_user = self.settings.is_users("max-model-len");
        let wish = Wish {
            model: self.model,
            config: &config,
            len_by_user,
            granted,
            all: self.facts.engine.name != "plinth",
        };
        let (budget, max_model_len) =
            budget(&wish, room).map_err(|does_not| Box::new(Refusal::DoesNotFit(does_not)))?;
        if max_model_len != config.max_model_len {
            let reason = format!(
                "what fits: the model was made for {}",
                text::count(config.max_model_len.into())
            );
            let value = Value::Unsigned(max_model_len.into());
            self.settings
                .decide("max-model-len", &value, DecidedBy::Floor, &reason);
            let message = format!(
                "{} tokens instead of the model's {}: the KV cache has {}",
                text::count(max_model_len.into()),
                text::count(config.max_model_len.into()),
                text::bytes(budget.kv_bytes)
            );
            let fix = "give it more memory (--kv-cache-memory, --memory-utilization), or a smaller --kv-dtype";
            self.warn(
                "short-context",
                "max-model-len",
                message,
                Some(fix.to_owned()),
            );
        }
        Ok(budget)
    }
}

/// The node of each worker: the one that its rank names, or else its CPU's. One whose memory this process may not use
/// has no share of anything, and its workers count to the first that it may use.
fn nodes_of(facts: &Facts, cpus: &[u32], named: Option<u32>) -> Vec<u32> {
    let visible = || facts.host.numa.iter().filter(|node| node.visible);
    let node_of = |cpu: &u32| {
        let known = facts.host.logical.iter().find(|logical| logical.id == *cpu);
        let own = known.map(|logical| logical.node);
        let usable = own.filter(|own| visible().any(|node| node.id == *own));
        named
            .or(usable)
            .or_else(|| visible().next().map(|node| node.id))
            .unwrap_or_default()
    };
    cpus.iter().map(node_of).collect()
}
