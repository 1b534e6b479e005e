//! Detection reads trees of other machines, believes what limits they show, and survives any file that is wrong.

mod machines;
mod robustness;

use machines::Machine;
use plinth_kernels::detect::{Source, detect};
use plinth_platform::facts::{Cache, Facts, HostFacts};

const GIB: u64 = 1 << 30;

fn threads(host: &HostFacts) -> (u32, &str) {
    (host.budget.threads, &host.budget.threads_limit)
}

fn memory(host: &HostFacts) -> (u64, &str) {
    (host.budget.memory, &host.budget.memory_limit)
}

fn cores(host: &HostFacts) -> usize {
    let mut cores: Vec<u32> = host.logical.iter().map(|cpu| cpu.core).collect();
    cores.sort_unstable();
    cores.dedup();
    cores.len()
}

fn has(facts: &Facts, feature: &str) -> bool {
    facts.host.isa.iter().any(|name| name == feature)
}

#[test]
fn a_small_guest_without_limits() {
    let facts = machines::zen4_vm().facts();
    let host = &facts.host;
    assert_eq!(
        (host.arch.as_str(), host.os.as_str(), host.wsl),
        ("x86_64", "linux", false)
    );
    assert_eq!(
        (host.vendor.as_str(), host.model.as_str()),
        ("AuthenticAMD", "AMD EPYC")
    );
    assert!(has(&facts, "avx512_bf16") && has(&facts, "f16c") && !has(&facts, "amx_tile"));
    assert!(host.isa.is_sorted());
    assert_eq!(threads(host), (2, "2 physical cores"));
    assert_eq!(memory(host), (24_357_700 * 1024, "MemAvailable"));
    assert_eq!(
        host.caches,
        [
            Cache {
                level: 1,
                bytes: 32 << 10,
                shared_by: 1
            },
            Cache {
                level: 2,
                bytes: 1 << 20,
                shared_by: 1
            },
            Cache {
                level: 3,
                bytes: 32 << 20,
                shared_by: 2
            },
        ]
    );
    // The only node has the machine's memory, though its own file counts less.
    assert_eq!(
        (host.numa.len(), host.numa[0].total),
        (1, 24_684_096 * 1024)
    );
    assert_eq!(
        (
            facts.devices.len(),
            facts.driver_notes.len(),
            facts.kernels.len()
        ),
        (0, 0, 0)
    );
}

#[test]
fn two_sockets_with_smt() {
    let host = machines::xeon_2s().facts().host;
    assert_eq!((host.logical.len(), cores(&host)), (16, 8));
    assert_eq!(host.logical[3].core, host.logical[11].core);
    assert_eq!((host.logical[6].node, host.logical[7].node), (0, 1));
    assert_eq!(threads(&host), (8, "8 physical cores of 16 CPUs"));
    assert_eq!(host.numa.len(), 2);
    assert_eq!(host.numa[1].available, (44_000_000 + 2048) * 1024);
    assert!(host.numa.iter().all(|node| node.visible));
    assert_eq!(
        host.caches[2],
        Cache {
            level: 3,
            bytes: 8448 << 10,
            shared_by: 8
        }
    );
}

#[test]
fn without_a_topology_in_sys_the_processor_list_tells_cores_apart() {
    let host = machines::xeon_2s().without("sys/").facts().host;
    assert_eq!((host.logical.len(), cores(&host)), (16, 8));
    assert_eq!(host.logical[3].core, host.logical[11].core);
    assert_ne!(host.logical[2].core, host.logical[3].core);
    assert_eq!(threads(&host), (8, "8 physical cores of 16 CPUs"));
    assert_eq!((host.numa.len(), host.caches.len()), (1, 0));
}

#[test]
fn four_nodes_in_one_socket() {
    let host = machines::epyc_nps4().facts().host;
    assert_eq!(
        (host.logical.len(), cores(&host), host.numa.len()),
        (64, 32, 4)
    );
    assert_eq!((host.logical[40].node, host.logical[63].node), (1, 3));
    assert_eq!(
        host.caches.last(),
        Some(&Cache {
            level: 3,
            bytes: 32 << 20,
            shared_by: 8
        })
    );
    assert_eq!(threads(&host), (32, "32 physical cores of 64 CPUs"));
}

#[test]
fn an_arm_server() {
    let facts = machines::graviton3().facts();
    let host = &facts.host;
    assert_eq!(
        (host.arch.as_str(), host.vendor.as_str()),
        ("aarch64", "ARM")
    );
    assert_eq!(host.model, "Neoverse-V1");
    assert!(
        ["asimd", "asimddp", "i8mm", "bf16", "sve"]
            .iter()
            .all(|feature| has(&facts, feature))
    );
    assert_eq!(threads(host), (64, "64 physical cores"));
}

#[test]
fn a_quota_is_whole_cores_and_the_tightest_memory_limit_on_the_way_up_decides() {
    let host = machines::pod_on_epyc().facts().host;
    let group = "/sys/fs/cgroup/kubepods.slice/pod7f.slice/cri-2a.scope";
    let limit = format!("cgroup v2 cpu.max 765000/100000 at {group}: 7.65 cores");
    assert_eq!(threads(&host), (7, limit.as_str()));
    // The container's own limit leaves 13 GiB, that of all pods only 8.
    let limit = "cgroup v2 memory.max at /sys/fs/cgroup/kubepods.slice 20 GiB, 12 GiB in use";
    assert_eq!(memory(&host), (8 * GIB, limit));
    // A quota is no mask: every CPU may still be used.
    assert!(host.logical.iter().all(|cpu| cpu.allowed));
}

#[test]
fn an_ancestor_may_have_the_tighter_quota() {
    let pods = "sys/fs/cgroup/kubepods.slice";
    let host = machines::pod_on_epyc()
        .file(&format!("{pods}/cpu.max"), "300000 100000\n")
        .facts()
        .host;
    assert_eq!(
        threads(&host),
        (
            3,
            "cgroup v2 cpu.max 300000/100000 at /sys/fs/cgroup/kubepods.slice: 3 cores"
        )
    );
}

#[test]
fn under_one_core_is_one_thread() {
    let pods = "sys/fs/cgroup/kubepods.slice";
    let host = machines::pod_on_epyc()
        .file(&format!("{pods}/cpu.max"), "25000 100000\n")
        .facts()
        .host;
    assert_eq!(
        threads(&host),
        (
            1,
            "cgroup v2 cpu.max 25000/100000 at /sys/fs/cgroup/kubepods.slice: 0.25 cores"
        )
    );
}

#[test]
fn a_quota_over_the_cores_does_not_decide() {
    let pod = "sys/fs/cgroup/kubepods.slice/pod7f.slice/cri-2a.scope";
    // The 60 cores for all pods are left.
    let host = machines::pod_on_epyc()
        .file(&format!("{pod}/cpu.max"), "max 100000\n")
        .facts()
        .host;
    assert_eq!(threads(&host), (32, "32 physical cores of 64 CPUs"));
}

#[test]
fn a_quota_of_as_many_cores_does_not_decide() {
    let cores = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us";
    let host = machines::docker_v1_on_xeon()
        .file(cores, "400000\n")
        .facts()
        .host;
    assert_eq!(threads(&host), (8, "8 physical cores of 16 CPUs"));
}

#[test]
fn siblings_that_leave_out_the_cpu_itself_are_not_believed() {
    let host = machines::graviton3()
        .file("sys/devices/system/cpu/cpu7/topology/core_cpus_list", "6\n")
        .facts()
        .host;
    assert_eq!(cores(&host), 64);
}

#[test]
fn memory_high_counts_as_a_limit() {
    let pod = "sys/fs/cgroup/kubepods.slice/pod7f.slice/cri-2a.scope";
    let host = machines::pod_on_epyc()
        .file(&format!("{pod}/memory.high"), "4294967296\n")
        .facts()
        .host;
    let limit = "cgroup v2 memory.high at /sys/fs/cgroup/kubepods.slice/pod7f.slice/cri-2a.scope 4 GiB, 3 GiB in use";
    assert_eq!(memory(&host), (GIB, limit));
}

#[test]
fn version_1_groups_below_the_part_that_is_mounted() {
    let host = machines::docker_v1_on_xeon().facts().host;
    let limit = "cgroup v1 cpu.cfs_quota_us 250000/50000 at /sys/fs/cgroup/cpu,cpuacct: 5 cores";
    assert_eq!(threads(&host), (5, limit));
    let limit = "cgroup v1 memory.limit_in_bytes at /sys/fs/cgroup/memory 4 GiB, 1 GiB in use";
    assert_eq!(memory(&host), (3 * GIB, limit));
}

#[test]
fn version_1_tells_of_ancestors_that_are_not_mounted() {
    let stat = "hierarchical_memory_limit 3221225472\ntotal_inactive_file 1073741824\n";
    let host = machines::docker_v1_on_xeon()
        .file("sys/fs/cgroup/memory/memory.stat", stat)
        .facts()
        .host;
    let limit = "cgroup v1 hierarchical_memory_limit at /sys/fs/cgroup/memory 3 GiB, 1 GiB in use";
    assert_eq!(memory(&host), (2 * GIB, limit));
}

#[test]
fn a_version_1_ancestor_without_hierarchy_limits_only_itself() {
    let tight = |hierarchy: &str| {
        machines::zen4_vm()
            .file(
                "sys/fs/cgroup/memory/sandbox/memory.limit_in_bytes",
                "1073741824\n",
            )
            .file(
                "sys/fs/cgroup/memory/sandbox/memory.use_hierarchy",
                hierarchy,
            )
            .facts()
            .host
    };
    assert_eq!(memory(&tight("0\n")).1, "MemAvailable");
    let limit =
        "cgroup v1 memory.limit_in_bytes at /sys/fs/cgroup/memory/sandbox 1 GiB, 0 MiB in use";
    assert_eq!(memory(&tight("1\n")), (GIB, limit));
}

#[test]
fn a_group_outside_the_namespace_is_bounded_by_the_mount() {
    // A host's hierarchy, mounted into a container from outside its namespace.
    let mountinfo = "30 23 0:26 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let host = machines::xeon_2s()
        .file("proc/self/mountinfo", mountinfo)
        .file("proc/self/cgroup", "0::/\n")
        .file("sys/fs/cgroup/cpu.max", "200000 100000\n")
        .facts()
        .host;
    assert_eq!(
        threads(&host),
        (
            2,
            "cgroup v2 cpu.max 200000/100000 at /sys/fs/cgroup: 2 cores"
        )
    );
}

#[test]
fn a_cpuset_of_four_cpus() {
    let host = machines::cpuset_on_graviton3().facts().host;
    assert_eq!(
        threads(&host),
        (4, "cgroup v2 cpuset at /sys/fs/cgroup/batch: 4 of 64 CPUs")
    );
    let allowed: Vec<u32> = host
        .logical
        .iter()
        .filter(|cpu| cpu.allowed)
        .map(|cpu| cpu.id)
        .collect();
    assert_eq!(allowed, [8, 9, 10, 11]);
    // The caches are those of the first CPU that is allowed.
    assert_eq!(
        host.caches,
        [Cache {
            level: 1,
            bytes: 64 << 10,
            shared_by: 1
        }]
    );
}

#[test]
fn smt_siblings_in_a_mask_are_one_core() {
    let bound = |cpus: &str| {
        let status = format!("Cpus_allowed_list:\t{cpus}\n");
        machines::xeon_2s()
            .file("proc/self/status", status)
            .facts()
            .host
    };
    assert_eq!(threads(&bound("0-3")), (4, "affinity: 4 of 16 CPUs"));
    assert_eq!(
        threads(&bound("0-1,8-9")),
        (2, "affinity: 4 of 16 CPUs, 2 physical cores")
    );
    assert_eq!(
        threads(&bound("5,13")),
        (1, "affinity: 2 of 16 CPUs, 1 physical core")
    );
    // A mask of CPUs that are not there is not about this machine.
    assert_eq!(threads(&bound("64-67")), (8, "8 physical cores of 16 CPUs"));
}

#[test]
fn affinity_within_a_cpuset() {
    let status = "Cpus_allowed_list:\t9-10\n";
    let host = machines::cpuset_on_graviton3()
        .file("proc/self/status", status)
        .facts()
        .host;
    assert_eq!(threads(&host), (2, "affinity: 2 of 64 CPUs"));
}

#[test]
fn memory_of_the_allowed_nodes_only() {
    let status = "Cpus_allowed_list:\t0-15\nMems_allowed_list:\t1\n";
    let host = machines::xeon_2s()
        .file("proc/self/status", status)
        .facts()
        .host;
    let visible: Vec<bool> = host.numa.iter().map(|node| node.visible).collect();
    assert_eq!(visible, [false, true]);
    assert_eq!(
        memory(&host),
        (
            (44_000_000 + 2048) * 1024,
            "memory of 1 of 2 NUMA nodes (cpuset)"
        )
    );
}

#[test]
fn an_address_space_limit_counts() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                  Max cpu time              unlimited            unlimited            seconds   \n\
                  Max address space         1073741824           unlimited            bytes     \n";
    let host = machines::xeon_2s()
        .file("proc/self/limits", limits)
        .facts()
        .host;
    assert_eq!(
        memory(&host),
        (GIB - (128 << 20), "address space limit (ulimit -v) 1 GiB")
    );
    let none = limits.replace("1073741824", "unlimited ");
    assert_eq!(
        memory(
            &machines::xeon_2s()
                .file("proc/self/limits", none)
                .facts()
                .host
        )
        .1,
        "MemAvailable"
    );
}

#[test]
fn the_windows_subsystem() {
    let host = machines::wsl().facts().host;
    assert!(host.wsl);
    assert_eq!(threads(&host), (4, "4 physical cores of 8 CPUs"));
    assert_eq!(
        (host.numa.len(), host.numa[0].total),
        (1, 16_000_000 * 1024)
    );
    // The instruction cache is not one of them.
    let first_level = Cache {
        level: 1,
        bytes: 48 << 10,
        shared_by: 2,
    };
    assert_eq!(host.caches, [first_level]);
}

#[test]
fn offline_cpus_are_not_there() {
    let host = machines::offline_on_xeon().facts().host;
    assert_eq!((host.logical.len(), cores(&host)), (13, 7));
    assert!(
        host.logical
            .iter()
            .all(|cpu| ![3, 11, 12].contains(&cpu.id))
    );
    assert_eq!(threads(&host), (7, "7 physical cores of 13 CPUs"));
}

#[test]
fn an_empty_tree_has_defaults() {
    let facts = Machine::default().facts();
    let host = &facts.host;
    assert_eq!(
        (host.logical.len(), host.numa.len(), host.isa.len()),
        (1, 1, 0)
    );
    assert_eq!(threads(host), (1, "1 physical core"));
    assert_eq!(
        memory(host),
        (
            4 * GIB,
            "4 GiB assumed (the system does not say what it has)"
        )
    );
    assert!(host.logical[0].allowed && host.numa[0].visible);
}

#[test]
fn this_machine() {
    let facts = detect(&Source::this_machine());
    let host = &facts.host;
    let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(
        (1..=parallelism).contains(&(host.budget.threads as usize)),
        "{:?}",
        host.budget
    );
    assert!(host.budget.memory > 0 && host.isa.is_sorted());
    assert!(host.logical.iter().any(|cpu| cpu.allowed));
    #[cfg(target_arch = "x86_64")]
    for (name, usable) in [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512_vnni", is_x86_feature_detected!("avx512vnni")),
    ] {
        assert_eq!(has(&facts, name), usable, "{name}");
    }
    // Either devices, or a note that says why there are none.
    assert!(!facts.devices.is_empty() || !facts.driver_notes.is_empty());
}
