//! Facts of the machines that decisions were recorded for: what a record names, and nothing that would sway an answer.

use plinth_platform::facts::{
    Budget, DeviceFacts, Engine, Facts, HostFacts, LogicalCpu, NumaNode, Version,
};

/// A machine with one core, asked about vLLM's kernels as `catalogue` lists them.
pub fn plain(catalogue: &str) -> Facts {
    let mut facts = Facts {
        host: host("x86_64"),
        devices: Vec::new(),
        driver_notes: Vec::new(),
        kernels: Vec::new(),
        env: Vec::new(),
        packages: Vec::new(),
        // What is in reach is said by the record: nothing may be filled in.
        services: vec!["none".to_owned()],
        engine: Engine {
            name: "vllm".to_owned(),
            version: Version {
                major: 0,
                minor: 22,
                patch: 1,
            },
        },
        costs: Vec::new(),
    };
    let known = crate::catalogue::apply(&mut facts, catalogue);
    known.expect("the catalogues of the binary can be read");
    facts
}

fn host(arch: &str) -> HostFacts {
    let cpu = LogicalCpu {
        id: 0,
        core: 0,
        node: 0,
        allowed: true,
    };
    HostFacts {
        arch: arch.to_owned(),
        vendor: String::new(),
        model: String::new(),
        isa: Vec::new(),
        logical: vec![cpu],
        numa: vec![node(0)],
        caches: Vec::new(),
        budget: Budget {
            threads: 1,
            threads_limit: "1 core".to_owned(),
            memory: 1 << 34,
            memory_limit: "MemAvailable".to_owned(),
        },
        os: "linux".to_owned(),
        wsl: false,
    }
}

fn node(id: u32) -> NumaNode {
    NumaNode {
        id,
        total: 1 << 35,
        available: 1 << 34,
        visible: true,
    }
}

/// A device of a vendor.
pub fn device(vendor: &str) -> DeviceFacts {
    DeviceFacts {
        index: 0,
        vendor: vendor.to_owned(),
        name: String::new(),
        uuid: None,
        arch: String::new(),
        capability: None,
        memory_total: 1 << 36,
        memory_free: 1 << 36,
        compute_units: None,
        integrated: false,
        numa: None,
        features: Vec::new(),
        peers: Vec::new(),
    }
}

/// Architectures as records name them.
pub fn arch(recorded: &str) -> &'static str {
    match recorded {
        "X86" => "x86_64",
        "ARM" => "aarch64",
        "RISCV" => "riscv64",
        "POWERPC" => "powerpc64le",
        "S390X" => "s390x",
        _ => "other",
    }
}

/// Hardware threads of `nodes` NUMA nodes of `cores` cores of `smt` threads each. Numbered core by core if `interleaved`,
/// else the first thread of every core, then the second of every core.
pub fn numbered(facts: &mut Facts, nodes: u32, cores: u32, smt: u32, interleaved: bool) {
    let all = nodes * cores;
    let cpu = |core: u32, thread: u32| LogicalCpu {
        id: match interleaved {
            true => core * smt + thread,
            false => thread * all + core,
        },
        core,
        node: core / cores.max(1),
        allowed: true,
    };
    let threads = (0..all).flat_map(|core| (0..smt).map(move |thread| cpu(core, thread)));
    facts.host.logical = threads.collect();
    facts.host.logical.sort_by_key(|cpu| cpu.id);
    facts.host.numa = (0..nodes).map(node).collect();
    facts.host.budget.threads = all;
    facts.host.budget.threads_limit = format!("{all} physical cores");
}
