//! `/proc/cpuinfo`, which every architecture writes differently: what processor this is, and its features.

use super::tree::Tree;
use std::collections::BTreeSet;

/// What `/proc/cpuinfo` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CpuInfo {
    /// Architecture by the shape of the file; absent if nothing gives it away.
    pub(super) arch: Option<&'static str>,
    pub(super) vendor: String,
    pub(super) model: String,
    /// Features that every listed CPU has, since a thread may land on any.
    pub(super) isa: BTreeSet<String>,
    /// One entry per listed CPU.
    pub(super) processors: Vec<Processor>,
}

/// One stanza of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processor {
    pub(super) id: u32,
    /// x86 only: socket and core number within it.
    pub(super) package: Option<u32>,
    pub(super) core: Option<u32>,
}

impl CpuInfo {
    pub(super) fn read(tree: &Tree) -> Self {
        let mut info = Self::parse(&tree.text("/proc/cpuinfo").unwrap_or_default());
        let machine = tree.text("/proc/sys/kernel/arch").unwrap_or_default(); // Linux 6.1 and later
        info.arch = arch_of_machine(machine.trim()).or(info.arch);
        info
    }

    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let mut implementer = None;
        let mut part = None;
        let mut last_features = "";
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            match key.as_str() {
                "processor" => info.start(value),
                "physical id" => info.last(|cpu| cpu.package = value.parse().ok()),
                "core id" => info.last(|cpu| cpu.core = value.parse().ok()),
                "vendor_id" => info.name(Name::Vendor, value),
                "model name" | "cpu" | "uarch" => info.name(Name::Model, value),
                "cpu implementer" => implementer = implementer.or_else(|| hexadecimal(value)),
                "cpu part" => part = part.or_else(|| hexadecimal(value)),
                "flags" | "features" | "isa" if value != last_features => {
                    info.restrict(features(&key, value));
                    last_features = value;
                }
                _ => info.start_s390(&key),
            }
            info.arch = info.arch.or_else(|| arch_of_line(&key, value));
        }
        info.name_arm(implementer, part);
        if info.model.starts_with("POWER") && info.vendor.is_empty() {
            info.name_power();
        }
        info
    }

    fn start(&mut self, number: &str) {
        // Old 32-bit ARM kernels write a name here: "Processor : ARMv7 Processor rev 4".
        if let Ok(id) = number.parse() {
            self.processors.push(Processor {
                id,
                ..Processor::default()
            });
        }
    }

    /// s390x: "processor 3: version = FF, identification = …".
    fn start_s390(&mut self, key: &str) {
        if let Some(number) = key.strip_prefix("processor ") {
            self.start(number);
        }
    }

    fn last(&mut self, set: impl FnOnce(&mut Processor)) {
        if let Some(cpu) = self.processors.last_mut() {
            set(cpu);
        }
    }

    fn name(&mut self, which: Name, value: &str) {
        let name = match which {
            Name::Vendor => &mut self.vendor,
            Name::Model => &mut self.model,
        };
        if name.is_empty() {
            *name = value
                .chars()
                .filter(|c| !c.is_control())
                .take(128)
                .collect();
        }
    }

    fn restrict(&mut self, found: BTreeSet<String>) {
        if self.isa.is_empty() {
            self.isa = found;
        } else if !found.is_empty() {
            self.isa.retain(|feature| found.contains(feature));
        }
    }

    fn name_arm(&mut self, implementer: Option<u32>, part: Option<u32>) {
        let Some(implementer) = implementer else {
            return;
        };
        self.name(Name::Vendor, arm_vendor(implementer));
        if let Some(part) = part {
            self.name(Name::Model, &arm_core(implementer, part));
        }
    }

    /// "POWER9 (architected), altivec supported": the only feature that the file names.
    fn name_power(&mut self) {
        self.vendor = "IBM".to_owned();
        if self.model.contains("altivec supported") {
            self.isa.insert("altivec".to_owned());
        }
        if let Some((model, _)) = self.model.split_once(',') {
            self.model = model.to_owned();
        }
    }
}

#[derive(Clone, Copy)]
enum Name {
    Vendor,
    Model,
}

fn features(key: &str, value: &str) -> BTreeSet<String> {
    if key == "isa" {
        return riscv_extensions(value);
    }
    value.split_ascii_whitespace().map(str::to_owned).collect()
}

/// `rv64imafdcv_zicsr_zba` → `a c d f i m v zba zicsr`.
fn riscv_extensions(isa: &str) -> BTreeSet<String> {
    let isa = isa.to_ascii_lowercase();
    let Some(isa) = isa
        .strip_prefix("rv64")
        .or_else(|| isa.strip_prefix("rv32"))
    else {
        return BTreeSet::new();
    };
    let mut parts = isa.split('_');
    let letters = parts.next().unwrap_or_default().replace('g', "imafd");
    let letters = letters
        .chars()
        .filter(char::is_ascii_lowercase)
        .map(String::from)
        .collect::<Vec<_>>();
    letters
        .into_iter()
        .chain(parts.filter(|part| !part.is_empty()).map(str::to_owned))
        .collect()
}

/// The name that Rust and Linux use for what `uname -m` prints.
fn arch_of_machine(machine: &str) -> Option<&'static str> {
    Some(match machine {
        "x86_64" => "x86_64",
        "i386" | "i486" | "i586" | "i686" => "x86",
        "aarch64" | "arm64" => "aarch64",
        "riscv64" => "riscv64",
        "ppc64le" => "powerpc64le",
        "ppc64" => "powerpc64",
        "s390x" => "s390x",
        "loongarch64" => "loongarch64",
        machine if machine.starts_with("armv") => "arm",
        _ => return None,
    })
}

fn arch_of_line(key: &str, value: &str) -> Option<&'static str> {
    match key {
        "flags" if value.split_ascii_whitespace().any(|flag| flag == "lm") => Some("x86_64"),
        "flags" if value.split_ascii_whitespace().any(|flag| flag == "fpu") => Some("x86"),
        "features" if value.split_ascii_whitespace().any(|flag| flag == "asimd") => Some("aarch64"),
        "features" if value.split_ascii_whitespace().any(|flag| flag == "neon") => Some("arm"),
        "features" if value.split_ascii_whitespace().any(|flag| flag == "zarch") => Some("s390x"),
        "features" if value.split_ascii_whitespace().any(|flag| flag == "cpucfg") => {
            Some("loongarch64")
        }
        "isa" if value.starts_with("rv64") => Some("riscv64"),
        "isa" if value.starts_with("rv32") => Some("riscv32"),
        "cpu" if value.starts_with("POWER") => Some("powerpc64le"),
        _ => None,
    }
}

fn hexadecimal(value: &str) -> Option<u32> {
    u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

/// **Source**: Arm Architecture Reference Manual, MIDR_EL1.Implementer, and Linux `arch/arm64/include/asm/cputype.h`.
fn arm_vendor(implementer: u32) -> &'static str {
    match implementer {
        0x41 => "ARM",
        0x42 => "Broadcom",
        0x43 => "Cavium",
        0x46 => "Fujitsu",
        0x48 => "HiSilicon",
        0x4e => "NVIDIA",
        0x50 => "APM",
        0x51 => "Qualcomm",
        0x53 => "Samsung",
        0x56 => "Marvell",
        0x61 => "Apple",
        0x69 => "Intel",
        0x6d => "Microsoft",
        0x70 => "Phytium",
        0xc0 => "Ampere",
        _ => "",
    }
}

/// **Source**: Linux `arch/arm64/include/asm/cputype.h`, the `*_CPU_PART_*` constants.
fn arm_core(implementer: u32, part: u32) -> String {
    let name = match (implementer, part) {
        (0x41, 0xd03) => "Cortex-A53",
        (0x41, 0xd05) => "Cortex-A55",
        (0x41, 0xd08) => "Cortex-A72",
        (0x41, 0xd0b) => "Cortex-A76",
        (0x41, 0xd0c) => "Neoverse-N1",
        (0x41, 0xd40) => "Neoverse-V1",
        (0x41, 0xd49) => "Neoverse-N2",
        (0x41, 0xd4f) => "Neoverse-V2",
        (0x41, 0xd8e) => "Neoverse-N3",
        (0x41, 0xd84) => "Neoverse-V3",
        (0x46, 0x001) => "A64FX",
        (0x48, 0xd01) => "TaiShan-v110",
        (0xc0, 0xac3) => "Ampere-1",
        (0xc0, 0xac4) => "Ampere-1a",
        _ => return format!("part {part:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isa(info: &CpuInfo) -> Vec<&str> {
        info.isa.iter().map(String::as_str).collect()
    }

    #[test]
    fn x86_keeps_what_every_cpu_has() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Hybrid\nphysical id\t: 0\ncore id\t\t: 4\n\
                    flags\t\t: fpu lm avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fpu lm avx2\n";
        let info = CpuInfo::parse(text);
        assert_eq!(isa(&info), ["avx2", "fpu", "lm"]);
        assert_eq!(
            (info.arch, info.vendor.as_str(), info.model.as_str()),
            (Some("x86_64"), "GenuineIntel", "Hybrid")
        );
        assert_eq!(
            info.processors[0],
            Processor {
                id: 0,
                package: Some(0),
                core: Some(4)
            }
        );
        assert_eq!(info.processors.len(), 2);
    }

    #[test]
    fn arm_is_named_by_its_part() {
        let text = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n";
        let info = CpuInfo::parse(text);
        assert_eq!(
            (info.arch, info.vendor.as_str(), info.model.as_str()),
            (Some("aarch64"), "ARM", "Neoverse-V2")
        );
        assert_eq!(isa(&info), ["asimd", "asimddp", "fp", "i8mm"]);
        let unknown = CpuInfo::parse("CPU implementer : 0x99\nCPU part : 0x7\n");
        assert_eq!(
            (unknown.vendor.as_str(), unknown.model.as_str()),
            ("", "part 0x7")
        );
    }

    #[test]
    fn riscv_extensions_are_split() {
        let text = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64gcv_zba_zvfh\nmmu\t\t: sv39\nuarch\t\t: sifive,u74-mc\n";
        let info = CpuInfo::parse(text);
        assert_eq!(
            isa(&info),
            ["a", "c", "d", "f", "i", "m", "v", "zba", "zvfh"]
        );
        assert_eq!(
            (info.arch, info.model.as_str()),
            (Some("riscv64"), "sifive,u74-mc")
        );
    }

    #[test]
    fn power_and_s390() {
        let info =
            CpuInfo::parse("processor\t: 0\ncpu\t\t: POWER9 (architected), altivec supported\n");
        assert_eq!(
            (info.arch, info.vendor.as_str(), info.model.as_str()),
            (Some("powerpc64le"), "IBM", "POWER9 (architected)")
        );
        assert_eq!(isa(&info), ["altivec"]);

        let text = "vendor_id       : IBM/S390\nfeatures\t: esan3 zarch vx vxe\nprocessor 0: version = 00\nprocessor 1: version = 00\n";
        let info = CpuInfo::parse(text);
        assert_eq!(
            (info.arch, info.vendor.as_str(), info.processors.len()),
            (Some("s390x"), "IBM/S390", 2)
        );
        assert_eq!(isa(&info), ["esan3", "vx", "vxe", "zarch"]);
    }
}
