//! Which platforms are asked: the built-in ones, and the component files that the user names.

use crate::builtin;
use crate::cli::PlatformArgs;
use crate::error::{Failure, Result};
use plinth_host::{Guest, Host, HostOptions, LoadError, digest};
use plinth_platform::plan::Origin;
use plinth_platform::policy::Severity;
use plinth_platform::registry::{Candidate, Registry};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All of them, loaded. A file of a plugin folder that cannot be is kept with the reason, and the plan shows it.
///
/// # Errors
/// A file that the user named is no platform plugin, or a folder that the user named cannot be read.
pub fn registry(args: &PlatformArgs) -> Result<Registry> {
    let mut registry = Registry::default();
    let in_folder = in_folder(args.plugin_dir.as_deref())?;
    let host = match host() {
        Ok(host) => host,
        // The native floor needs no WebAssembly: go on, unless more than it was asked for.
        Err(error) if args.plugins.is_empty() => {
            for (_, component) in builtin::COMPONENTS {
                registry.register_failure(Origin::BuiltIn, digest(component), error.to_string());
            }
            return Ok(registry);
        }
        Err(error) => return Err(Failure::failed(error)),
    };
    for (guest, (_, component)) in load_built_in(&host).into_iter().zip(builtin::COMPONENTS) {
        let digest = match &guest {
            Ok(guest) => guest.digest().to_owned(),
            Err(_) => digest(component),
        };
        register(&mut registry, Origin::BuiltIn, digest, guest);
    }
    for path in &args.plugins {
        let guest = host.load_file(path).map_err(Failure::input)?;
        let digest = guest.digest().to_owned();
        register(&mut registry, file(path), digest, Ok(guest));
    }
    for path in in_folder {
        let loaded = host.read_file(&path).map(|bytes| {
            let guest = host.load_bytes(&path.display().to_string(), &bytes);
            (digest(&bytes), guest)
        });
        let (digest, guest) = loaded.unwrap_or_else(|error| (String::new(), Err(error)));
        register(&mut registry, file(&path), digest, guest);
    }
    Ok(registry)
}

/// Side by side: every command that plans waits for all of them.
fn load_built_in(host: &Host) -> Vec<Result<Guest, LoadError>> {
    std::thread::scope(|scope| {
        let load = |&(id, component): &(&'static str, &'static [u8])| {
            scope.spawn(move || host.load_bytes(id, component))
        };
        let loading: Vec<_> = builtin::COMPONENTS.iter().map(load).collect();
        let joined = loading.into_iter().map(|thread| thread.join());
        // A panic in there is one here.
        joined
            .map(|loaded| loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn register(
    registry: &mut Registry,
    origin: Origin,
    digest: String,
    guest: Result<Guest, LoadError>,
) {
    match guest {
        Err(error) => registry.register_failure(origin, digest, error.to_string()),
        Ok(guest) => registry.register(Candidate {
            platform: Box::new(guest),
            origin,
            digest,
        }),
    }
}

/// One platform: a component file, or a built-in by its id.
pub fn one(plugin: &str) -> Result<Loaded> {
    let host = host().map_err(Failure::failed)?;
    let built_in = builtin::COMPONENTS.iter().find(|(id, _)| *id == plugin);
    let (origin, bytes) = match built_in {
        Some((_, component)) => (Origin::BuiltIn, component.to_vec()),
        None => {
            let path = Path::new(plugin);
            (file(path), host.read_file(path).map_err(Failure::input)?)
        }
    };
    Ok(Loaded {
        name: plugin.to_owned(),
        origin,
        bytes,
        host,
    })
}

/// A component that one command looks at.
pub struct Loaded {
    /// What the user called it.
    pub name: String,
    /// Where it came from.
    pub origin: Origin,
    /// The component.
    pub bytes: Vec<u8>,
    /// What runs it.
    pub host: Host,
}

impl Loaded {
    /// The platform, to be asked.
    pub fn guest(&self) -> Result<Guest> {
        self.host
            .load_bytes(&self.name, &self.bytes)
            .map_err(Failure::input)
    }
}

fn file(path: &Path) -> Origin {
    Origin::File {
        path: path.display().to_string(),
    }
}

/// The components of the plugin folder, in the order of their names.
fn in_folder(named: Option<&Path>) -> Result<Vec<PathBuf>> {
    let set = std::env::var_os("PLINTH_PLUGIN_DIR").filter(|folder| !folder.is_empty());
    let (folder, must_exist) = match (named, set) {
        (Some(folder), _) => (folder.to_owned(), true),
        (None, Some(folder)) => (PathBuf::from(folder), true),
        (None, None) => match user_folder("XDG_DATA_HOME", ".local/share") {
            Some(folder) => (folder.join("plugins"), false),
            None => return Ok(Vec::new()),
        },
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(_) if !must_exist => return Ok(Vec::new()),
        Err(error) => {
            let context = format!("cannot read the plugin folder '{}'", folder.display());
            return Err(Failure::Input(anyhow::Error::new(error).context(context)));
        }
    };
    let mut components: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "wasm"))
        .collect();
    components.sort();
    Ok(components)
}

fn host() -> Result<Host, LoadError> {
    Host::new(&HostOptions {
        cache: cache_folder().map(|folder| folder.join("guests")),
        key: user_folder("XDG_DATA_HOME", ".local/share"),
        log: Some(Arc::new(log)),
        ..HostOptions::default()
    })
}

/// Where we may keep what can be made again. `None` for a user without a home.
pub fn cache_folder() -> Option<PathBuf> {
    user_folder("XDG_CACHE_HOME", ".cache")
}

/// Our part of one of the user's folders (XDG Base Directory Specification). `None` for a user without a home.
fn user_folder(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from);
    let base = set.filter(|folder| folder.is_absolute()).or_else(|| {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        home.map(|home| Path::new(&home).join(in_home))
    });
    base.map(|folder| folder.join("plinth"))
}

/// What a guest wants its author to see.
fn log(platform: &str, severity: Severity, line: &str) {
    let severity = match severity {
        Severity::Info => "",
        Severity::Warn => "warning: ",
        Severity::Reject => "error: ",
    };
    eprintln!("{platform}: {severity}{line}");
}
