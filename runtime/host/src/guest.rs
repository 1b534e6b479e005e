//! A component seen as a platform.

use crate::bindings::{PlatformPlugin, PlatformPluginPre};
use crate::convert::all;
use crate::host::Shared;
use crate::sandbox::{State, begin_call, store};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::policy::{
    AttentionQuery, BatchDefaults, BlockPlan, BlockQuery, Capabilities, ConfigCheck, Decision,
    Descriptor, Diagnostic, EngineConfig, Fault, GraphPlan, GraphQuery, KvTransferPlan, OpShape,
    ParallelPlan, Patch, Platform, Probe, Rule, ThreadPlan,
};
use std::sync::Arc;
use wasmtime::component::Component;
use wasmtime::{Store, Trap};

/// A loaded component. Its instance is made at the first question and dropped after any error: memory in which something
/// went wrong is never entered again.
pub struct Guest {
    shared: Arc<Shared>,
    pre: PlatformPluginPre<State>,
    live: Option<(Store<State>, PlatformPlugin)>,
    /// What the live instance was probed with: its questions are about these facts.
    knows: Option<Arc<Facts>>,
    name: String,
    digest: String,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Guest {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pre: PlatformPluginPre<State>,
        name: String,
        digest: String,
    ) -> Self {
        Self {
            shared,
            pre,
            live: None,
            knows: None,
            name,
            digest,
        }
    }

    /// `sha256:…` of the component.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Makes its instance anew, as after an error. For measurements.
    pub fn restart(&mut self) -> Result<(), Fault> {
        self.live = None;
        self.knows = None;
        self.ensure_live("instantiate")
    }

    pub(crate) fn component(&self) -> &Component {
        self.pre.instance_pre().component()
    }

    fn ensure_live(&mut self, question: &str) -> Result<(), Fault> {
        if self.live.is_some() {
            return Ok(());
        }
        let mut store = store(&self.shared.engine, &self.shared.limits);
        begin_call(&mut store, &self.shared.limits);
        let plugin = self
            .pre
            .instantiate(&mut store)
            .map_err(|error| self.fault(question, &error))?;
        self.live = Some((store, plugin));
        Ok(())
    }

    /// One question, within its bounds.
    fn ask<T>(
        &mut self,
        question: &str,
        call: impl FnOnce(&PlatformPlugin, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        self.ensure_live(question)?;
        let (mut store, plugin) = self.live.take().expect("it was just made");
        begin_call(&mut store, &self.shared.limits);
        let answer = call(&plugin, &mut store);
        let lines = store.data_mut().take_log();
        if let Some(log) = &self.shared.log {
            for (severity, line) in &lines {
                log(&self.name, *severity, line);
            }
        }
        match answer {
            Ok(answer) => {
                self.live = Some((store, plugin));
                Ok(answer)
            }
            Err(error) => {
                self.knows = None;
                Err(self.fault(question, &error))
            }
        }
    }

    /// One question about facts. They are large, so that an instance is handed them once.
    fn ask_of<T>(
        &mut self,
        facts: &Arc<Facts>,
        question: &str,
        call: impl FnOnce(&PlatformPlugin, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        // The instance keeps its own reference, so that an address says who the facts are.
        let knows = |known: &Arc<Facts>| Arc::ptr_eq(known, facts);
        if !self.knows.as_ref().is_some_and(knows) {
            self.probe(facts)?;
        }
        self.ask(question, call)
    }

    fn fault(&self, question: &str, error: &wasmtime::Error) -> Fault {
        Fault {
            platform: self.name.clone(),
            digest: self.digest.clone(),
            question: question.to_owned(),
            message: self.message(error),
        }
    }

    /// What went wrong, in words that name the bound.
    fn message(&self, error: &wasmtime::Error) -> String {
        let limits = &self.shared.limits;
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => {
                return format!("it took longer than {} ms", limits.call.as_millis());
            }
            Some(Trap::StackOverflow) => return "it recursed until its stack was full".to_owned(),
            Some(Trap::UnreachableCodeReached) => {
                return "it trapped: it gave up (a panic, or an abort)".to_owned();
            }
            Some(trap) => return format!("it trapped: {trap}"),
            None => {}
        }
        // Wasmtime has no types for these.
        let text = format!("{error:#}");
        if text.contains("growing memory") || text.contains("memory minimum size") {
            let detail = plinth_platform::text::quote(text.rsplit(": ").next().unwrap_or_default());
            return format!(
                "it took more than {} bytes of memory ({detail})",
                limits.memory
            );
        }
        if text.contains("growing table") || text.contains("table minimum size") {
            return format!(
                "it took a table of more than {} elements",
                limits.table_elements
            );
        }
        if text.contains("too much data") || text.contains("hostcall fuel") || text.contains("fuel")
        {
            return format!(
                "its answer is larger than the {} bytes that the host lifts",
                limits.lifting
            );
        }
        // The outer errors say where in the guest, which its author finds by other means.
        plinth_platform::text::visible(&error.root_cause().to_string())
    }
}

impl Platform for Guest {
    fn describe(&mut self) -> Result<Descriptor, Fault> {
        let descriptor = self.ask("describe", |p, s| {
            p.plinth_platform_platform().call_describe(s)
        })?;
        let descriptor: Descriptor = descriptor.into();
        // From here on it goes by its id: a file name says less.
        self.name.clone_from(&descriptor.id);
        Ok(descriptor)
    }

    fn probe(&mut self, facts: &Arc<Facts>) -> Result<Probe, Fault> {
        self.knows = None;
        let given = facts.as_ref().into();
        let answer = self.ask("probe", |p, s| {
            p.plinth_platform_platform().call_probe(s, &given)
        })?;
        self.knows = Some(Arc::clone(facts));
        Ok(answer.into())
    }

    fn device_capabilities(
        &mut self,
        facts: &Arc<Facts>,
        device: u32,
    ) -> Result<Result<Capabilities, Diagnostic>, Fault> {
        let answer = self.ask_of(facts, "device-capabilities", |p, s| {
            p.plinth_platform_platform()
                .call_device_capabilities(s, device)
        })?;
        Ok(answer.map(Into::into).map_err(Into::into))
    }

    fn batch_defaults(
        &mut self,
        facts: &Arc<Facts>,
        usage: &str,
        world_size: u32,
    ) -> Result<BatchDefaults, Fault> {
        let answer = self.ask_of(facts, "batch-defaults", |p, s| {
            p.plinth_platform_platform()
                .call_batch_defaults(s, usage, world_size)
        })?;
        Ok(answer.into())
    }

    fn default_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Result<Vec<Patch>, Fault> {
        let answer = self.ask_of(facts, "default-config", |p, s| {
            p.plinth_platform_platform()
                .call_default_config(s, &model.into(), &config.into())
        })?;
        Ok(all(answer))
    }

    fn check_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Result<ConfigCheck, Fault> {
        let answer = self.ask_of(facts, "check-config", |p, s| {
            p.plinth_platform_platform()
                .call_check_config(s, &model.into(), &config.into())
        })?;
        Ok(answer.into())
    }

    fn select_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault> {
        let answer = self.ask_of(facts, "select-attention", |p, s| {
            p.plinth_platform_platform()
                .call_select_attention(s, &query.into())
        })?;
        Ok(answer.into())
    }

    fn select_vision_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault> {
        let answer = self.ask_of(facts, "select-vision-attention", |p, s| {
            p.plinth_platform_platform()
                .call_select_vision_attention(s, &query.into())
        })?;
        Ok(answer.into())
    }

    fn choose_block_size(
        &mut self,
        facts: &Arc<Facts>,
        query: &BlockQuery,
    ) -> Result<Result<BlockPlan, Diagnostic>, Fault> {
        let answer = self.ask_of(facts, "choose-block-size", |p, s| {
            p.plinth_platform_platform()
                .call_choose_block_size(s, &query.into())
        })?;
        Ok(answer.map(Into::into).map_err(Into::into))
    }

    fn kernel_priority(
        &mut self,
        facts: &Arc<Facts>,
        op: &str,
        shape: &OpShape,
    ) -> Result<Decision, Fault> {
        let answer = self.ask_of(facts, "kernel-priority", |p, s| {
            p.plinth_platform_platform()
                .call_kernel_priority(s, op, &shape.into())
        })?;
        Ok(answer.into())
    }

    fn plan_graphs(
        &mut self,
        facts: &Arc<Facts>,
        query: &GraphQuery,
    ) -> Result<Result<GraphPlan, Diagnostic>, Fault> {
        let answer = self.ask_of(facts, "plan-graphs", |p, s| {
            p.plinth_platform_platform()
                .call_plan_graphs(s, &query.into())
        })?;
        Ok(answer.map(Into::into).map_err(Into::into))
    }

    fn plan_memory(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
        device: u32,
        used: u64,
    ) -> Result<Result<u64, Diagnostic>, Fault> {
        let answer = self.ask_of(facts, "plan-memory", |p, s| {
            p.plinth_platform_platform()
                .call_plan_memory(s, &config.into(), device, used)
        })?;
        Ok(answer.map_err(Into::into))
    }

    fn plan_threads(
        &mut self,
        facts: &Arc<Facts>,
        ranks: u32,
    ) -> Result<Result<ThreadPlan, Diagnostic>, Fault> {
        let answer = self.ask_of(facts, "plan-threads", |p, s| {
            p.plinth_platform_platform().call_plan_threads(s, ranks)
        })?;
        Ok(answer.map(Into::into).map_err(Into::into))
    }

    fn plan_parallel(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
    ) -> Result<ParallelPlan, Fault> {
        let answer = self.ask_of(facts, "plan-parallel", |p, s| {
            p.plinth_platform_platform()
                .call_plan_parallel(s, &config.into())
        })?;
        Ok(answer.into())
    }

    fn plan_kv_transfer(&mut self, facts: &Arc<Facts>) -> Result<KvTransferPlan, Fault> {
        let answer = self.ask_of(facts, "plan-kv-transfer", |p, s| {
            p.plinth_platform_platform().call_plan_kv_transfer(s)
        })?;
        Ok(answer.into())
    }

    fn request_rules(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
    ) -> Result<Vec<Rule>, Fault> {
        let answer = self.ask_of(facts, "request-rules", |p, s| {
            p.plinth_platform_platform()
                .call_request_rules(s, &config.into())
        })?;
        Ok(all(answer))
    }
}
