//! CUDA devices, as the driver lists them. No context is made on any device, and nothing is run on it.
//!
//! A machine without a driver is the common case: it gets a note that says what was looked for, and what to do if
//! there is a device to drive. A driver that fails never takes the process's other facts with it.

mod driver;
mod nvml;

use plinth_platform::facts::{DeviceFacts, DriverNote, Peer};

use super::tree::{Tree, kib_field};
use driver::{Attribute, Device, Driver, LoadError, Status};
use nvml::Nvml;

/// Names of the driver's library, in the order in which they are tried. Never plain `libcuda.so`, which may be the
/// toolkit's stub. The paths are those of systems whose loader does not know where the driver is.
#[cfg(not(windows))]
const NAMES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
];
#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];

/// What came of asking.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pub(super) devices: Vec<DeviceFacts>,
    pub(super) notes: Vec<DriverNote>,
}

impl Probe {
    fn note(&mut self, found: impl Into<String>, fix: Option<&str>) {
        self.notes.push(DriverNote {
            driver: "cuda".to_owned(),
            found: found.into(),
            fix: fix.map(str::to_owned),
        });
    }
}

/// Asks the driver of this machine.
pub(super) fn probe(tree: &Tree) -> Probe {
    let mut probe = Probe::default();
    match Driver::load(&NAMES) {
        Ok(driver) => {
            let nvml = Nvml::start();
            list(
                &driver,
                tree,
                |uuid| nvml.as_ref()?.free_memory(uuid),
                &mut probe,
            );
        }
        Err(error) => note_load_error(tree, &error, &mut probe),
    }
    probe
}

fn note_load_error(tree: &Tree, error: &LoadError, probe: &mut Probe) {
    const INSTALL: &str = "install the NVIDIA driver 535 or newer";
    const INSTALL_OR_PASS_IN: &str = "install the NVIDIA driver 535 or newer; in a container, start it with the \
                                      devices passed in (docker run --gpus all)";
    const INSTALL_ON_WINDOWS: &str =
        "if the machine has an NVIDIA device, install its driver on Windows: WSL passes it in";
    let name = NAMES[0];
    match (error, pci_devices(tree)) {
        (LoadError::MissingSymbol(symbol), _) => {
            probe.note(format!("{name} has no {symbol}"), Some(INSTALL))
        }
        (LoadError::Broken(words), _) => probe.note(words, Some(INSTALL)),
        (LoadError::NotFound, 0) if super::is_wsl(tree) => {
            probe.note(format!("{name} not found"), Some(INSTALL_ON_WINDOWS));
        }
        (LoadError::NotFound, 0) => probe.note(
            format!("{name} not found, and no NVIDIA device on the PCI bus"),
            None,
        ),
        (LoadError::NotFound, count) => {
            probe.note(
                format!("{name} not found (NVIDIA devices on the PCI bus: {count})"),
                Some(INSTALL_OR_PASS_IN),
            );
        }
    }
}

/// NVIDIA's display and compute controllers on the PCI bus.
fn pci_devices(tree: &Tree) -> usize {
    const BUS: &str = "/sys/bus/pci/devices";
    let is = |device: &str, file: &str, start: &str| {
        tree.text(&format!("{BUS}/{device}/{file}"))
            .is_some_and(|text| text.starts_with(start))
    };
    let devices = tree.names(BUS);
    devices
        .iter()
        .filter(|device| is(device, "vendor", "0x10de") && is(device, "class", "0x03"))
        .count()
}

fn list(
    driver: &Driver,
    tree: &Tree,
    free_memory: impl Fn(&str) -> Option<u64>,
    probe: &mut Probe,
) {
    if let Err(status) = driver.start() {
        let (found, fix) = explain(status);
        return probe.note(
            format!("the driver did not start: {found} (cuInit: error {status})"),
            fix,
        );
    }
    let count = match driver.count() {
        Ok(0) => {
            let (found, fix) = explain(NO_DEVICE);
            return probe.note(format!("the driver lists {found}"), fix);
        }
        Ok(count) => count,
        Err(status) => {
            return probe.note(format!("cuDeviceGetCount: error {status}"), Some(CHECK_SMI));
        }
    };
    let software = software(driver, tree);
    let mut handles = Vec::new();
    for index in 0..count {
        match device(driver, tree, index, &free_memory) {
            Ok((handle, mut facts)) => {
                facts.features.splice(0..0, software.iter().cloned());
                handles.push(handle);
                probe.devices.push(facts);
            }
            Err((call, status)) => probe.note(
                format!("device {index}: {call}: error {status}"),
                Some(CHECK_SMI),
            ),
        }
    }
    link(driver, &handles, &mut probe.devices);
}

const NO_DEVICE: Status = 100;
const CHECK_SMI: &str =
    "run nvidia-smi: if it fails too, reinstall the driver or restart the machine";

/// What a failed `cuInit` means, and what to do. **Source**: `cuda.h`, `CUresult`.
fn explain(status: Status) -> (&'static str, Option<&'static str>) {
    match status {
        34 => (
            "it is the toolkit's stub library, not a driver",
            Some(
                "take the toolkit's stubs folder out of the library path, and install the NVIDIA driver",
            ),
        ),
        46 => (
            "a device is unavailable",
            Some("end the process that has it in exclusive mode (nvidia-smi shows it)"),
        ),
        NO_DEVICE => (
            "no device",
            Some(
                "check CUDA_VISIBLE_DEVICES; in a container, pass the devices in (docker run --gpus all)",
            ),
        ),
        101 => (
            "an invalid device is asked for",
            Some("check CUDA_VISIBLE_DEVICES"),
        ),
        802 => (
            "the system is not ready",
            Some("start the fabric manager (nvidia-fabricmanager)"),
        ),
        803 => (
            "library and kernel module are of different versions",
            Some("restart the machine, or reload the nvidia kernel module"),
        ),
        804 => (
            "the compatibility library does not support this device",
            Some("install a newer NVIDIA driver instead of the cuda-compat package"),
        ),
        _ => ("an error of the driver", Some(CHECK_SMI)),
    }
}

/// Versions, for every device alike: `driver=550.54.15`, `cuda=12.4`.
fn software(driver: &Driver, tree: &Tree) -> Vec<String> {
    let module = tree.text("/proc/driver/nvidia/version").unwrap_or_default();
    let module = module_version(&module).map(|version| format!("driver={version}"));
    let cuda = driver
        .version()
        .ok()
        .map(|(major, minor)| format!("cuda={major}.{minor}"));
    module.into_iter().chain(cuda).collect()
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 …` → `550.54.15`.
fn module_version(text: &str) -> Option<&str> {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines()
        .next()?
        .split_ascii_whitespace()
        .find(is_version)
}

type Failure = (&'static str, Status);

fn device(
    driver: &Driver,
    tree: &Tree,
    index: u32,
    free_memory: impl Fn(&str) -> Option<u64>,
) -> Result<(Device, DeviceFacts), Failure> {
    let handle = driver
        .device(index)
        .map_err(|status| ("cuDeviceGet", status))?;
    let total = driver
        .memory(handle)
        .map_err(|status| ("cuDeviceTotalMem", status))?;
    let name = driver
        .name(handle)
        .map_err(|status| ("cuDeviceGetName", status))?;
    let uuid = driver.uuid(handle).ok().map(|uuid| uuid_text(&uuid, &name));

    let attribute = |attribute| driver.attribute(attribute, handle).ok();
    let capability =
        attribute(Attribute::CapabilityMajor).zip(attribute(Attribute::CapabilityMinor));
    let integrated = attribute(Attribute::Integrated) == Some(1);
    let pci = pci_address(
        attribute(Attribute::PciDomain),
        attribute(Attribute::PciBus),
        attribute(Attribute::PciDevice),
    );

    let available_on_host = || kib_field(&tree.text("/proc/meminfo")?, "MemAvailable");
    let free = if integrated {
        available_on_host()
    } else {
        uuid.as_deref().and_then(free_memory)
    };
    let features = [
        (attribute(Attribute::EccEnabled) == Some(1)).then(|| "ecc".to_owned()),
        free.is_none().then(|| "free-memory=unknown".to_owned()),
        pci.as_ref().map(|pci| format!("pci={pci}")),
    ];
    let facts = DeviceFacts {
        index,
        vendor: "nvidia".to_owned(),
        name,
        uuid,
        arch: capability
            .map(|(major, minor)| format!("sm_{major}{minor}"))
            .unwrap_or_default(),
        capability,
        memory_total: total,
        memory_free: free.unwrap_or(total).min(total),
        compute_units: attribute(Attribute::Multiprocessors),
        integrated,
        // The file holds -1 where the firmware names no node.
        numa: pci.and_then(|pci| tree.value(&format!("/sys/bus/pci/devices/{pci}/numa_node"))),
        features: features.into_iter().flatten().collect(),
        peers: Vec::new(),
    };
    Ok((handle, facts))
}

/// `0000:17:00.0`: the driver gives no function number; a device's first is the one.
fn pci_address(domain: Option<u32>, bus: Option<u32>, device: Option<u32>) -> Option<String> {
    Some(format!("{:04x}:{:02x}:{:02x}.0", domain?, bus?, device?))
}

/// The id as `nvidia-smi` prints it.
fn uuid_text(uuid: &[u8; 16], name: &str) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = if name.contains(" MIG ") { "MIG" } else { "GPU" };
    format!(
        "{kind}-{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Fills in which devices reach which.
fn link(driver: &Driver, handles: &[Device], devices: &mut [DeviceFacts]) {
    let indices: Vec<u32> = devices.iter().map(|device| device.index).collect();
    for (device, &from) in devices.iter_mut().zip(handles) {
        for (&index, &to) in indices.iter().zip(handles) {
            if to != from && driver.reaches(from, to) {
                let link = if driver.has_native_atomics(from, to) {
                    "nvlink"
                } else {
                    "pcie"
                };
                device.peers.push(Peer {
                    device: index,
                    link: link.to_owned(),
                    hops: 1,
                });
            }
        }
        if !device.peers.is_empty() {
            device.features.push("p2p".to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
