//! This machine as facts: processor, limits, memory and CUDA devices. It measures and never decides.
//!
//! Everything but the devices is read from `/proc` and `/sys`, so that a copied tree gives the facts of another
//! machine. Nothing here fails: what cannot be read has a default, and a driver that cannot list its devices leaves
//! a note that says why.

mod tree;

mod cpuinfo;
mod live;

mod topology;

mod cgroup;
mod memory;
mod threads;

mod cuda;

use std::path::Path;

use plinth_platform::facts::{Budget, Engine, Facts, HostFacts};

use cgroup::Cgroups;
use cpuinfo::CpuInfo;
use memory::HostMemory;
use threads::Allowed;
use tree::{IdSet, Tree};

/// Where facts come from.
#[derive(Clone, Debug)]
pub struct Source {
    tree: Tree,
    /// The tree is this machine's, so that this process and the drivers may be asked too.
    live: bool,
}

impl Source {
    /// The machine and the process that this is.
    pub fn this_machine() -> Self {
        Self {
            tree: Tree::new(Path::new("/")),
            live: true,
        }
    }

    /// A tree with the `/proc` and `/sys` of a Linux machine, wherever it was copied from. `/proc/self` in it is the
    /// process whose budget is found; no driver is asked for devices.
    pub fn root(path: &Path) -> Self {
        Self {
            tree: Tree::new(path),
            live: false,
        }
    }
}

/// Measures the machine. The catalogue of kernels is left empty: it is not a property of the machine.
///
/// Called once at start; a CUDA driver may take some hundred milliseconds to start up.
pub fn detect(source: &Source) -> Facts {
    let devices = if source.live {
        cuda::probe(&source.tree)
    } else {
        cuda::Probe::default()
    };
    Facts {
        host: host(source),
        devices: devices.devices,
        driver_notes: devices.notes,
        kernels: Vec::new(),
        env: Vec::new(),
        packages: Vec::new(),
        services: Vec::new(),
        engine: Engine::plinth(),
        costs: Vec::new(),
    }
}

fn host(source: &Source) -> HostFacts {
    let tree = &source.tree;
    let info = CpuInfo::read(tree);
    let groups = Cgroups::read(tree);

    let online = topology::online(
        tree,
        &info,
        if source.live { live::parallelism() } else { 1 },
    );
    let allowed = Allowed::read(tree, &groups, affinity(source), &online);
    let nodes = topology::nodes(tree);
    let present = topology::Present {
        online: &online,
        allowed: &allowed.cpus,
        nodes: &nodes,
    };
    let logical = topology::logical_cpus(tree, &info, &present);
    let first = allowed.cpus.first().copied().unwrap_or(0);

    let memory = HostMemory::read(source);
    let visible =
        memory::allowed_nodes(tree, &groups).filter(|visible| !visible.is_disjoint(&nodes));
    let numa = memory::numa_nodes(tree, &nodes, visible.as_ref().unwrap_or(&nodes), &memory);

    let (threads, threads_limit) =
        threads::budget(&logical, &allowed, groups.cpu_quota(tree).as_ref());
    let (memory, memory_limit) = memory::budget(source, &groups, &numa, &memory);
    HostFacts {
        arch: if source.live {
            live::arch()
        } else {
            info.arch.unwrap_or(live::arch())
        }
        .to_owned(),
        vendor: info.vendor,
        model: info.model,
        isa: if source.live {
            live::usable(info.isa)
        } else {
            info.isa
        }
        .into_iter()
        .collect(),
        caches: topology::caches(tree, first),
        logical,
        numa,
        budget: Budget {
            threads,
            threads_limit,
            memory,
            memory_limit,
        },
        os: if source.live {
            std::env::consts::OS
        } else {
            "linux"
        }
        .to_owned(),
        wsl: is_wsl(tree),
    }
}

fn affinity(source: &Source) -> Option<IdSet> {
    let of_process = || {
        let status = source.tree.text("/proc/self/status")?;
        tree::parse_ids(tree::field(&status, "Cpus_allowed_list", ':')?)
    };
    if source.live {
        live::affinity().or_else(of_process)
    } else {
        of_process()
    }
}

/// The Windows Subsystem for Linux signs its kernel: `5.15.153.1-microsoft-standard-WSL2`.
fn is_wsl(tree: &Tree) -> bool {
    let kernel = tree
        .text("/proc/sys/kernel/osrelease")
        .or_else(|| tree.text("/proc/version"));
    kernel.is_some_and(|kernel| kernel.to_ascii_lowercase().contains("microsoft"))
}
