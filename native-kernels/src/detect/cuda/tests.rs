//! A driver made of Rust functions: what the probe does with each answer, on a machine without a device.

use std::ffi::{c_char, c_int, c_uint};
use std::path::Path;

use super::*;

const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const INVALID_DEVICE: Status = 101;

unsafe extern "C" fn init(_flags: c_uint) -> Status {
    SUCCESS
}

unsafe extern "C" fn init_mismatch(_flags: c_uint) -> Status {
    803
}

unsafe extern "C" fn init_unknown(_flags: c_uint) -> Status {
    999
}

/// Defines an entry point that writes what `$result` gives through its first argument, or fails with its error.
macro_rules! entry_points {
    ($(fn $name:ident($out:ty $(, $arg:ident: $type:ty)*) $result:expr;)*) => {$(
        unsafe extern "C" fn $name(out: *mut $out $(, $arg: $type)*) -> Status {
            let result: Result<$out, Status> = $result;
            result.map_or_else(|status| status, |value| {
                // SAFETY: the caller hands a pointer for one value of this type to be written through.
                unsafe { out.write(value) };
                SUCCESS
            })
        }
    )*};
}

entry_points! {
    fn driver_version(c_int) Ok(12_040);
    fn two_devices(c_int) Ok(2);
    fn no_devices(c_int) Ok(0);
    fn device_get(Device, index: c_int) Ok(index + 70);
    fn first_device_only(Device, index: c_int) if index == 0 { Ok(70) } else { Err(INVALID_DEVICE) };
    fn device_uuid([u8; 16], device: Device) Ok([device as u8; 16]);
    fn device_memory(usize, _device: Device) Ok(1 << 30);
    fn attribute(c_int, attribute: c_int, device: Device) attribute_value(attribute, device, 0);
    fn integrated(c_int, attribute: c_int, device: Device) attribute_value(attribute, device, 1);
    fn yes(c_int, _from: Device, _to: Device) Ok(1);
    fn no(c_int, _from: Device, _to: Device) Ok(0);
    fn native_atomics(c_int, attribute: c_int, _from: Device, _to: Device) Ok(c_int::from(attribute == 3));
    fn no_atomics(c_int, _attribute: c_int, _from: Device, _to: Device) Ok(0);
}

fn attribute_value(attribute: c_int, device: Device, integrated: c_int) -> Result<c_int, Status> {
    match attribute {
        16 => Ok(132),
        18 => Ok(integrated),
        32 => Ok(c_int::from(device == 70)),
        33 => Ok(0x17 + device - 70),
        34 | 50 | 76 => Ok(0),
        75 => Ok(9),
        _ => Err(INVALID_VALUE),
    }
}

/// Writes `name`, and `x` over the rest of the buffer.
///
/// # Safety
/// `len` bytes at `out` are the caller's to have written.
unsafe fn fill(out: *mut c_char, len: c_int, name: &[u8]) -> Status {
    for at in 0..len as usize {
        let byte = name.get(at).copied().unwrap_or(b'x');
        // SAFETY: `at` is under `len`.
        unsafe { out.add(at).write(byte as c_char) };
    }
    SUCCESS
}

unsafe extern "C" fn device_name(out: *mut c_char, len: c_int, _device: Device) -> Status {
    // SAFETY: cuDeviceGetName is given a buffer of `len` bytes.
    unsafe { fill(out, len, b"NVIDIA H100 80GB HBM3\0") }
}

unsafe extern "C" fn endless_name(out: *mut c_char, len: c_int, _device: Device) -> Status {
    // SAFETY: cuDeviceGetName is given a buffer of `len` bytes.
    unsafe { fill(out, len, b"") }
}

fn driver() -> Driver {
    Driver {
        init,
        driver_version,
        device_count: two_devices,
        device: device_get,
        device_name,
        device_uuid,
        device_memory,
        device_attribute: attribute,
        can_access_peer: yes,
        p2p_attribute: native_atomics,
    }
}

/// Lists `driver`'s devices on a machine with these files.
fn probe_with(driver: &Driver, files: &[(&str, &str)]) -> Probe {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    let mut probe = Probe::default();
    list(
        driver,
        &Tree::new(root.path()),
        |_| Some(900 << 20),
        &mut probe,
    );
    probe
}

fn only_note(probe: Probe) -> (String, String) {
    let [note] = probe.notes.try_into().expect("one note");
    (note.found, note.fix.unwrap_or_default())
}

#[test]
fn two_devices_on_nvlink() {
    let nvrm = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 13.2.0\n";
    let files = [
        ("proc/driver/nvidia/version", nvrm),
        ("sys/bus/pci/devices/0000:17:00.0/numa_node", "1\n"),
        ("sys/bus/pci/devices/0000:18:00.0/numa_node", "-1\n"),
    ];
    let probe = probe_with(&driver(), &files);
    assert_eq!(probe.notes, []);
    let expected = DeviceFacts {
        index: 0,
        vendor: "nvidia".to_owned(),
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        uuid: Some("GPU-46464646-4646-4646-4646-464646464646".to_owned()),
        arch: "sm_90".to_owned(),
        capability: Some((9, 0)),
        memory_total: 1 << 30,
        memory_free: 900 << 20,
        compute_units: Some(132),
        integrated: false,
        numa: Some(1),
        features: [
            "driver=550.54.15",
            "cuda=12.4",
            "ecc",
            "pci=0000:17:00.0",
            "p2p",
        ]
        .map(str::to_owned)
        .to_vec(),
        peers: vec![Peer {
            device: 1,
            link: "nvlink".to_owned(),
            hops: 1,
        }],
    };
    assert_eq!(probe.devices[0], expected);
    assert_eq!(probe.devices[1].numa, None);
    assert!(!probe.devices[1].features.contains(&"ecc".to_owned()));
    assert_eq!(
        probe.devices[1].peers,
        [Peer {
            device: 0,
            link: "nvlink".to_owned(),
            hops: 1
        }]
    );
}

#[test]
fn links_without_atomics_are_pci_express() {
    let probe = probe_with(
        &Driver {
            p2p_attribute: no_atomics,
            ..driver()
        },
        &[],
    );
    assert_eq!(
        probe.devices[0].peers,
        [Peer {
            device: 1,
            link: "pcie".to_owned(),
            hops: 1
        }]
    );
    let probe = probe_with(
        &Driver {
            can_access_peer: no,
            ..driver()
        },
        &[],
    );
    assert_eq!(probe.devices[0].peers, []);
    assert!(!probe.devices[0].features.contains(&"p2p".to_owned()));
}

#[test]
fn a_driver_that_does_not_start_says_why_and_what_to_do() {
    let (found, fix) = only_note(probe_with(
        &Driver {
            init: init_mismatch,
            ..driver()
        },
        &[],
    ));
    assert_eq!(
        found,
        "the driver did not start: library and kernel module are of different versions (cuInit: error 803)"
    );
    assert_eq!(
        fix,
        "restart the machine, or reload the nvidia kernel module"
    );
    let (found, fix) = only_note(probe_with(
        &Driver {
            init: init_unknown,
            ..driver()
        },
        &[],
    ));
    assert!(
        found.contains("error 999") && fix.contains("nvidia-smi"),
        "{found}; {fix}"
    );
}

#[test]
fn a_driver_without_devices_is_noted() {
    let (found, fix) = only_note(probe_with(
        &Driver {
            device_count: no_devices,
            ..driver()
        },
        &[],
    ));
    assert_eq!(found, "the driver lists no device");
    assert!(fix.contains("CUDA_VISIBLE_DEVICES"), "{fix}");
}

#[test]
fn one_broken_device_does_not_hide_the_other() {
    let probe = probe_with(
        &Driver {
            device: first_device_only,
            ..driver()
        },
        &[],
    );
    assert_eq!(probe.devices.len(), 1);
    assert_eq!(probe.devices[0].peers, []);
    assert_eq!(only_note(probe).0, "device 1: cuDeviceGet: error 101");
}

#[test]
fn names_always_end() {
    let probe = probe_with(
        &Driver {
            device_name: endless_name,
            ..driver()
        },
        &[],
    );
    assert_eq!(probe.devices[0].name.len(), 255);
}

#[test]
fn an_integrated_device_has_what_the_host_has_free() {
    let meminfo = [(
        "proc/meminfo",
        "MemTotal: 900000 kB\nMemAvailable: 500000 kB\n",
    )];
    let probe = probe_with(
        &Driver {
            device_attribute: integrated,
            ..driver()
        },
        &meminfo,
    );
    assert!(probe.devices[0].integrated);
    assert_eq!(probe.devices[0].memory_free, 512_000_000);
}

#[test]
fn unknown_free_memory_is_said_to_be_unknown() {
    let mut probe = Probe::default();
    list(
        &driver(),
        &Tree::new(Path::new("/nowhere")),
        |_| None,
        &mut probe,
    );
    assert_eq!(probe.devices[0].memory_free, probe.devices[0].memory_total);
    assert!(
        probe.devices[0]
            .features
            .contains(&"free-memory=unknown".to_owned())
    );
}

#[test]
fn a_library_that_is_not_there_or_not_a_driver() {
    assert!(matches!(
        Driver::load(&["libplinth-has-no-such-library.so.1"]),
        Err(LoadError::NotFound)
    ));
    // Any library that every Linux process has will do for one without the driver's entry points.
    #[cfg(target_os = "linux")]
    assert!(matches!(
        Driver::load(&["libc.so.6"]),
        Err(LoadError::MissingSymbol("cuInit") | LoadError::NotFound)
    ));
}

#[test]
fn without_a_driver_the_bus_decides_the_advice() {
    let note = |files: &[(&str, &str)]| {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = root.path().join("sys/bus/pci/devices").join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        let mut probe = Probe::default();
        note_load_error(&Tree::new(root.path()), &LoadError::NotFound, &mut probe);
        only_note(probe)
    };
    let name = NAMES[0];
    let (found, fix) = note(&[]);
    assert_eq!(
        (found, fix.as_str()),
        (
            format!("{name} not found, and no NVIDIA device on the PCI bus"),
            ""
        )
    );

    let audio = [
        ("0000:01:00.1/vendor", "0x10de\n"),
        ("0000:01:00.1/class", "0x040300\n"),
    ];
    assert_eq!(note(&audio).1, "");

    let display = [
        ("0000:01:00.0/vendor", "0x10de\n"),
        ("0000:01:00.0/class", "0x030200\n"),
    ];
    let (found, fix) = note(&display);
    assert_eq!(
        found,
        format!("{name} not found (NVIDIA devices on the PCI bus: 1)")
    );
    assert!(
        fix.starts_with("install the NVIDIA driver 535 or newer"),
        "{fix}"
    );
}
