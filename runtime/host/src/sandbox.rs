//! What a guest may take: time, memory, stack, log. Every bound holds for every call.

use crate::bindings::PlatformPluginImports;
use crate::bindings::plinth::platform::types::{self, Severity};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wasmtime::{Config, Engine, Store, StoreLimits, StoreLimitsBuilder};

/// Bounds of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wall clock of a call, instantiation included.
    pub call: Duration,
    /// Linear memory, in bytes.
    pub memory: usize,
    /// Elements of a table.
    pub table_elements: usize,
    /// Core instances of a component.
    pub instances: usize,
    /// Bytes that the host allocates to lift an answer or a log line.
    pub lifting: usize,
    /// Log lines of a call.
    pub log_lines: usize,
    /// Bytes of a log line.
    pub log_bytes: usize,
    /// Bytes of a component file.
    pub file: usize,
}

impl Default for Limits {
    /// What suits a guest in Rust, C or another compiled language. Measured: `benches/boundary.rs`.
    fn default() -> Self {
        Self {
            call: Duration::from_millis(50),
            memory: 16 << 20,
            table_elements: 10_000,
            instances: 8,
            lifting: 1 << 20,
            log_lines: 64,
            log_bytes: 4096,
            file: 8 << 20,
        }
    }
}

/// Stack of a guest, in bytes.
const STACK: usize = 512 << 10;

/// How often the clock of all guests ticks. A call is ended by the first tick after its time.
const TICK: Duration = Duration::from_millis(5);

/// What every engine is set to: bounded, and the same on every machine.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    // The clock of guests: they are interrupted, and cannot see it.
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK);
    // Determinism: NaN has one bit pattern, and what depends on the processor or on other threads is off.
    config.cranelift_nan_canonicalization(true);
    config.wasm_relaxed_simd(false);
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    // A guest of 16 MiB needs no reservation of gigabytes, which would fail under a limit of address space.
    config.memory_reservation(Limits::default().memory as u64);
    config.memory_reservation_for_growth(1 << 20);
    config.memory_guard_size(64 << 10);
    config
}

/// What belongs to one live instance.
pub(crate) struct State {
    limits: StoreLimits,
    log: Log,
}

/// Lines of the current call, and how much is left.
#[derive(Default)]
struct Log {
    lines: Vec<(plinth_platform::policy::Severity, String)>,
    max_lines: usize,
    max_bytes: usize,
}

impl State {
    pub fn take_log(&mut self) -> Vec<(plinth_platform::policy::Severity, String)> {
        std::mem::take(&mut self.log.lines)
    }
}

impl PlatformPluginImports for State {
    fn log(&mut self, severity: Severity, message: String) -> wasmtime::Result<()> {
        let Log {
            lines,
            max_lines,
            max_bytes,
        } = &mut self.log;
        if lines.len() >= *max_lines {
            return Err(wasmtime::Error::msg(format!(
                "wrote more than {max_lines} log lines in one call"
            )));
        }
        if message.len() > *max_bytes {
            let found = message.len();
            return Err(wasmtime::Error::msg(format!(
                "wrote a log line of {found} bytes, where {max_bytes} are allowed"
            )));
        }
        lines.push((severity.into(), plinth_platform::text::visible(&message)));
        Ok(())
    }
}

/// The types of the interface come with nothing to call.
impl types::Host for State {}

/// A store with every bound set.
pub(crate) fn store(engine: &Engine, limits: &Limits) -> Store<State> {
    let bounds = StoreLimitsBuilder::new()
        .memory_size(limits.memory)
        .table_elements(limits.table_elements)
        .instances(limits.instances)
        .memories(limits.instances)
        .tables(limits.instances)
        // A refused growth would leave the guest to go on without; ended, it is said what it wanted.
        .trap_on_grow_failure(true)
        .build();
    let log = Log {
        lines: Vec::new(),
        max_lines: limits.log_lines,
        max_bytes: limits.log_bytes,
    };
    let mut store = Store::new(
        engine,
        State {
            limits: bounds,
            log,
        },
    );
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(limits.lifting);
    store
}

/// Begins the time of a call.
pub(crate) fn begin_call(store: &mut Store<State>, limits: &Limits) {
    let ticks = limits.call.as_millis().div_ceil(TICK.as_millis());
    // One more: the first tick may come at once.
    store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX - 1) + 1);
    store.epoch_deadline_trap();
    store.set_hostcall_fuel(limits.lifting);
}

/// The clock of all guests of an engine. It ticks as long as this lives.
pub(crate) struct Clock {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clock {
    pub fn start(engine: &Engine) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, engine) = (Arc::clone(&stop), engine.weak());
        let thread = std::thread::Builder::new()
            .name("guest-clock".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::park_timeout(TICK);
                    match engine.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => return,
                    }
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It can have panicked only inside Wasmtime, which has said so.
            let _ = thread.join();
        }
    }
}
