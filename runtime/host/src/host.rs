//! The engine that all guests share, and the ways to load one.

use crate::cache::Cache;
use crate::guest::Guest;
use crate::load::{self, LoadError};
use crate::sandbox::{self, Clock, Limits};
use plinth_platform::policy::Severity;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::Engine;

/// Where a guest's log lines go: the platform's name, how bad, and the line, safe to show.
pub type LogSink = Arc<dyn Fn(&str, Severity, &str) + Send + Sync>;

/// Where a host keeps compiled guests, how much guests may take, and who reads what they log.
#[derive(Clone, Default)]
pub struct HostOptions {
    /// Folder of compiled guests. `None`: each start compiles anew.
    pub cache: Option<PathBuf>,
    /// Folder of the key that vouches for them: the user's own. `None`: no cache.
    pub key: Option<PathBuf>,
    /// Bounds of guests.
    pub limits: Limits,
    /// Reads what guests log. `None`: nobody does.
    pub log: Option<LogSink>,
}

/// Loads guests. They live as long as they like; their clock stops with the last of host and guests.
pub struct Host {
    pub(crate) shared: Arc<Shared>,
    cache: Option<Cache>,
}

/// What a guest needs of its host.
pub(crate) struct Shared {
    pub engine: Engine,
    pub limits: Limits,
    pub log: Option<LogSink>,
    _clock: Clock,
}

impl Host {
    /// A host with no guest.
    ///
    /// # Errors
    /// Wasmtime cannot run on this machine, or the system gives no thread.
    pub fn new(options: &HostOptions) -> Result<Self, LoadError> {
        let unusable = |why: String| LoadError::Host { why };
        let engine =
            Engine::new(&sandbox::config()).map_err(|error| unusable(format!("{error:#}")))?;
        let clock = Clock::start(&engine).map_err(|error| unusable(error.to_string()))?;
        let cache = match (&options.cache, &options.key) {
            (Some(folder), Some(key)) => Cache::open(folder, key),
            _ => None,
        };
        let shared = Shared {
            engine,
            limits: options.limits,
            log: options.log.clone(),
            _clock: clock,
        };
        Ok(Self {
            shared: Arc::new(shared),
            cache,
        })
    }

    /// Loads a component. `name` is said in errors.
    ///
    /// # Errors
    /// What it is, and what a platform plugin is.
    pub fn load_bytes(&self, name: &str, bytes: &[u8]) -> Result<Guest, LoadError> {
        load::load(&self.shared, self.cache.as_ref(), name, bytes)
    }

    /// Loads a component file.
    ///
    /// # Errors
    /// It cannot be read, or is no platform plugin.
    pub fn load_file(&self, path: &Path) -> Result<Guest, LoadError> {
        let bytes = self.read_file(path)?;
        self.load_bytes(&path.display().to_string(), &bytes)
    }

    /// Reads a component file, if it is not too large to be one.
    ///
    /// # Errors
    /// It cannot be read, or is too large.
    pub fn read_file(&self, path: &Path) -> Result<Vec<u8>, LoadError> {
        load::read(path, self.shared.limits.file)
    }
}
