//! Trees of other machines: the files of `/proc` and `/sys` that detection reads, as these machines show them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use plinth_kernels::detect::{Source, detect};
use plinth_platform::facts::Facts;
use tempfile::TempDir;

/// Files by path.
#[derive(Clone, Default)]
pub struct Machine {
    files: BTreeMap<String, Vec<u8>>,
}

impl Machine {
    /// With this file, in place of one of the same path.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), content.into());
        self
    }

    /// Without any file whose path starts so.
    pub fn without(mut self, prefix: &str) -> Self {
        self.files.retain(|path, _| !path.starts_with(prefix));
        self
    }

    pub fn paths(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    pub fn content(&self, path: &str) -> &[u8] {
        &self.files[path]
    }

    /// The tree, in a folder of its own.
    pub fn write(&self) -> TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, content) in &self.files {
            write(root.path(), path, content);
        }
        root
    }

    pub fn facts(&self) -> Facts {
        detect(&Source::root(self.write().path()))
    }

    /// A process bound to these CPUs and nodes.
    fn process(self, cpus: &str, mems: &str) -> Self {
        let status = format!(
            "Name:\tplinth\nVmSize:\t  131072 kB\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}\n"
        );
        self.file("proc/self/status", status)
    }

    /// These online CPUs, each with the list of its SMT siblings.
    fn cpus(mut self, online: &str, siblings: impl Iterator<Item = (u32, String)>) -> Self {
        self = self.file("sys/devices/system/cpu/online", format!("{online}\n"));
        for (cpu, siblings) in siblings {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list");
            self = self.file(&path, format!("{siblings}\n"));
        }
        self
    }

    /// A data or unified cache of a CPU.
    fn cache(
        self,
        cpu: u32,
        index: u32,
        (level, kind, size): (u8, &str, &str),
        shared: &str,
    ) -> Self {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
        self.file(&format!("{folder}/level"), format!("{level}\n"))
            .file(&format!("{folder}/type"), format!("{kind}\n"))
            .file(&format!("{folder}/size"), format!("{size}\n"))
            .file(&format!("{folder}/shared_cpu_list"), format!("{shared}\n"))
    }

    fn meminfo(self, total_kib: u64, available_kib: u64) -> Self {
        let text = format!(
            "MemTotal:       {total_kib} kB\nMemFree:        {available_kib} kB\nMemAvailable:   {available_kib} kB\n"
        );
        self.file("proc/meminfo", text)
    }

    /// NUMA nodes with their CPUs, each with as much memory.
    fn nodes(mut self, cpulists: &[&str], total_kib: u64, free_kib: u64) -> Self {
        let online = format!("0-{}\n", cpulists.len() - 1);
        self = self.file("sys/devices/system/node/online", online);
        for (node, cpulist) in cpulists.iter().enumerate() {
            let meminfo = format!(
                "Node {node} MemTotal:       {total_kib} kB\nNode {node} MemFree:        {free_kib} kB\n\
                 Node {node} Inactive(file):       1024 kB\nNode {node} SReclaimable:       1024 kB\n"
            );
            let folder = format!("sys/devices/system/node/node{node}");
            self = self
                .file(&format!("{folder}/cpulist"), format!("{cpulist}\n"))
                .file(&format!("{folder}/meminfo"), meminfo);
        }
        self
    }

    /// The unified hierarchy alone, this process in `group`.
    pub fn cgroup2(self, group: &str) -> Self {
        self.file("proc/self/cgroup", format!("0::{group}\n")).file(
            "proc/self/mountinfo",
            format!("{PROC_AND_SYS}{CGROUP2_AT_ROOT}"),
        )
    }
}

/// Writes one file of a tree.
pub fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, content).expect("a file");
}

const PROC_AND_SYS: &str = "\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
23 27 0:22 / /sys rw,relatime shared:6 - sysfs sysfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
";

const CGROUP2_AT_ROOT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

fn x86_cpuinfo(
    vendor: &str,
    model: &str,
    flags: &str,
    cpus: impl Iterator<Item = (u32, u32, u32)>,
) -> String {
    cpus.fold(String::new(), |mut text, (id, package, core)| {
        let stanza = format!(
            "processor\t: {id}\nvendor_id\t: {vendor}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {model}\n\
             physical id\t: {package}\ncore id\t\t: {core}\nfpu\t\t: yes\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n\n"
        );
        text.push_str(&stanza);
        text
    })
}

/// A guest of two virtual CPUs on a Zen 4 host, with cgroup v1 controllers and version 2 beside them.
pub fn zen4_vm() -> Machine {
    let flags = "fpu vme lm pni fma f16c avx avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vnni";
    let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    let unlimited = "9223372036854771712\n";
    Machine::default()
        .file(
            "proc/cpuinfo",
            x86_cpuinfo(
                "AuthenticAMD",
                "AMD EPYC",
                flags,
                (0..2).map(|id| (id, 0, id)),
            ),
        )
        .file("proc/sys/kernel/arch", "x86_64\n")
        .file("proc/sys/kernel/osrelease", "6.18.44\n")
        .process("0-1", "0")
        .meminfo(24_684_096, 24_357_700)
        .nodes(&["0-1"], 4_286_680, 3_406_404)
        .cpus("0-1", (0..2).map(|cpu| (cpu, cpu.to_string())))
        .cache(0, 0, (1, "Data", "32K"), "0")
        .cache(0, 1, (1, "Instruction", "32K"), "0")
        .cache(0, 2, (2, "Unified", "1024K"), "0")
        .cache(0, 3, (3, "Unified", "32768K"), "0-1")
        .file("proc/self/mountinfo", format!("{PROC_AND_SYS}{mounts}"))
        .file(
            "proc/self/cgroup",
            "9:name=systemd:/\n4:memory:/sandbox/f9e9\n3:cpuset:/\n1:cpu:/\n0::/\n",
        )
        .file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        .file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        .file("sys/fs/cgroup/cpuset/cpuset.effective_cpus", "0-1\n")
        .file("sys/fs/cgroup/cpuset/cpuset.effective_mems", "0\n")
        .file("sys/fs/cgroup/memory/memory.limit_in_bytes", unlimited)
        .file(
            "sys/fs/cgroup/memory/sandbox/f9e9/memory.limit_in_bytes",
            unlimited,
        )
        .file(
            "sys/fs/cgroup/memory/sandbox/f9e9/memory.usage_in_bytes",
            "79777792\n",
        )
        .file(
            "sys/fs/cgroup/memory/sandbox/f9e9/memory.stat",
            format!("hierarchical_memory_limit {unlimited}"),
        )
}

/// Two Xeon Silver 4112 (4 cores, 8 threads each), numbered as Dell's firmware does: even CPUs on the first socket.
pub fn xeon_2s() -> Machine {
    let flags = "fpu lm pni fma f16c avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl";
    let model = "Intel(R) Xeon(R) Silver 4112 CPU @ 2.60GHz";
    let cpus = (0..16).map(|id| (id, id % 2, id % 8 / 2));
    Machine::default()
        .file(
            "proc/cpuinfo",
            x86_cpuinfo("GenuineIntel", model, flags, cpus),
        )
        .process("0-15", "0-1")
        .meminfo(98_304_000, 90_000_000)
        .nodes(
            &["0,2,4,6,8,10,12,14", "1,3,5,7,9,11,13,15"],
            49_152_000,
            44_000_000,
        )
        .cpus(
            "0-15",
            (0..16).map(|cpu| (cpu, format!("{},{}", cpu % 8, cpu % 8 + 8))),
        )
        .cache(0, 0, (1, "Data", "32K"), "0,8")
        .cache(0, 1, (1, "Instruction", "32K"), "0,8")
        .cache(0, 2, (2, "Unified", "1024K"), "0,8")
        .cache(0, 3, (3, "Unified", "8448K"), "0,2,4,6,8,10,12,14")
        .cgroup2("/user.slice/session-1.scope")
}

/// An EPYC 7543 (32 cores, 64 threads) set to four nodes per socket.
pub fn epyc_nps4() -> Machine {
    let flags = "fpu lm pni fma f16c avx avx2 vaes vpclmulqdq";
    let cpus = (0..64).map(|id| (id, 0, id % 32));
    Machine::default()
        .file(
            "proc/cpuinfo",
            x86_cpuinfo(
                "AuthenticAMD",
                "AMD EPYC 7543 32-Core Processor",
                flags,
                cpus,
            ),
        )
        .process("0-63", "0-3")
        .meminfo(528_000_000, 500_000_000)
        .nodes(
            &["0-7,32-39", "8-15,40-47", "16-23,48-55", "24-31,56-63"],
            132_000_000,
            120_000_000,
        )
        .cpus(
            "0-63",
            (0..64).map(|cpu| (cpu, format!("{},{}", cpu % 32, cpu % 32 + 32))),
        )
        .cache(0, 0, (1, "Data", "32K"), "0,32")
        .cache(0, 2, (2, "Unified", "512K"), "0,32")
        .cache(0, 3, (3, "Unified", "32768K"), "0-3,32-35")
        .cgroup2("/")
}

/// Graviton 3: 64 Neoverse V1 cores, one node.
pub fn graviton3() -> Machine {
    let features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc \
                    dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp \
                    svei8mm svebf16 i8mm bf16 dgh rng";
    let cpuinfo = (0..64).fold(String::new(), |mut text, id| {
        let rest = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\n";
        write!(text, "processor\t: {id}\nBogoMIPS\t: 2100.00\nFeatures\t: {features}\n{rest}").expect("memory");
        text
    });
    Machine::default()
        .file("proc/cpuinfo", cpuinfo)
        .process("0-63", "0")
        .meminfo(129_000_000, 126_000_000)
        .nodes(&["0-63"], 129_000_000, 126_000_000)
        .cpus("0-63", (0..64).map(|cpu| (cpu, cpu.to_string())))
        .cache(0, 0, (1, "Data", "64K"), "0")
        .cache(0, 1, (1, "Instruction", "64K"), "0")
        .cache(0, 2, (2, "Unified", "1024K"), "0")
        .cache(0, 3, (3, "Unified", "32768K"), "0-63")
        .cache(8, 0, (1, "Data", "64K"), "8")
        .cgroup2("/")
}

/// A Kubernetes pod on the EPYC: 7.65 cores and 16 GiB for the container, less for all pods together.
pub fn pod_on_epyc() -> Machine {
    let (pods, pod) = (
        "sys/fs/cgroup/kubepods.slice",
        "sys/fs/cgroup/kubepods.slice/pod7f.slice/cri-2a.scope",
    );
    epyc_nps4()
        .cgroup2("/kubepods.slice/pod7f.slice/cri-2a.scope")
        .file(&format!("{pods}/cpu.max"), "6000000 100000\n")
        .file(&format!("{pods}/memory.max"), "21474836480\n") // 20 GiB, of which 12 are in use
        .file(&format!("{pods}/memory.high"), "max\n")
        .file(&format!("{pods}/memory.current"), "13958643712\n") // 13 GiB, with 1 GiB of idle page cache
        .file(
            &format!("{pods}/memory.stat"),
            "anon 1\ninactive_file 1073741824\nactive_file 5\n",
        )
        .file(&format!("{pod}/cpu.max"), "765000 100000\n")
        .file(&format!("{pod}/memory.max"), "17179869184\n")
        .file(&format!("{pod}/memory.current"), "3221225472\n")
        .file(&format!("{pod}/memory.stat"), "anon 1\ninactive_file 0\n")
}

/// A Docker container on the Xeon with cgroup v1: the mounts show only its own groups.
pub fn docker_v1_on_xeon() -> Machine {
    let mounts = "\
700 690 0:29 /docker/0a1b /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:11 - cgroup cgroup rw,cpu,cpuacct
701 690 0:30 /docker/0a1b /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:12 - cgroup cgroup rw,memory
702 690 0:31 /docker/0a1b /sys/fs/cgroup/cpuset ro,nosuid,nodev,noexec,relatime master:13 - cgroup cgroup rw,cpuset
";
    xeon_2s()
        .file("proc/self/mountinfo", format!("{PROC_AND_SYS}{mounts}"))
        .file("proc/self/cgroup", "6:cpuset:/docker/0a1b\n4:memory:/docker/0a1b\n2:cpu,cpuacct:/docker/0a1b\n")
        .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n")
        .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n")
        .file("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n")
        .file("sys/fs/cgroup/memory/memory.usage_in_bytes", "2147483648\n")
        .file("sys/fs/cgroup/memory/memory.use_hierarchy", "1\n")
        .file(
            "sys/fs/cgroup/memory/memory.stat",
            "inactive_file 1\nhierarchical_memory_limit 4294967296\ntotal_inactive_file 1073741824\n",
        )
}

/// Graviton 3 with a cpuset of four CPUs, which the process inherits as its affinity.
pub fn cpuset_on_graviton3() -> Machine {
    graviton3()
        .process("8-11", "0")
        .cgroup2("/batch/job")
        .file("sys/fs/cgroup/cpuset.cpus.effective", "0-63\n")
        .file("sys/fs/cgroup/batch/cpuset.cpus.effective", "8-11\n")
        .file("sys/fs/cgroup/batch/cpuset.mems.effective", "0\n")
}

/// Debian under the Windows Subsystem for Linux, on a laptop.
pub fn wsl() -> Machine {
    let flags = "fpu lm pni fma f16c avx avx2 avx_vnni hypervisor";
    let cpus = (0..8).map(|id| (id, 0, id / 2));
    let model = "12th Gen Intel(R) Core(TM) i7-1265U";
    Machine::default()
        .file(
            "proc/cpuinfo",
            x86_cpuinfo("GenuineIntel", model, flags, cpus),
        )
        .file(
            "proc/sys/kernel/osrelease",
            "5.15.153.1-microsoft-standard-WSL2\n",
        )
        .process("0-7", "0")
        .meminfo(16_000_000, 14_000_000)
        .cpus(
            "0-7",
            (0..8).map(|cpu| (cpu, format!("{}-{}", cpu / 2 * 2, cpu / 2 * 2 + 1))),
        )
        .cache(0, 0, (1, "Data", "48K"), "0-1")
        .cache(0, 1, (1, "Instruction", "32K"), "0-1")
        .cgroup2("/init.scope")
}

/// The Xeon with two CPUs taken offline: a whole core (3 and 11) and one sibling (12, of 4).
pub fn offline_on_xeon() -> Machine {
    let online = "0-2,4-10,13-15";
    let present = |cpu: &u32| ![3, 11, 12].contains(cpu);
    let siblings = |cpu: u32| {
        let pair = [cpu % 8, cpu % 8 + 8]
            .into_iter()
            .filter(present)
            .map(|cpu| cpu.to_string());
        (cpu, pair.collect::<Vec<_>>().join(","))
    };
    xeon_2s()
        .without("sys/devices/system/cpu/cpu")
        .cpus(online, (0..16).filter(present).map(siblings))
        .nodes(
            &["0,2,4,6,8,10,14", "1,5,7,9,13,15"],
            49_152_000,
            44_000_000,
        )
}
