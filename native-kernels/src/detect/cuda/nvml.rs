//! Free memory of a device through NVIDIA's management library, which needs no context on the device: a context
//! would take some hundred megabytes of the very memory that is asked about. The library is optional.
//!
//! **Source**: `nvml.h` of CUDA 12 (prototypes, `nvmlMemory_t`).

use std::ffi::{CString, c_char, c_int, c_void};

use super::driver::{load_library, symbol};

#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"];
#[cfg(windows)]
const NAMES: [&str; 1] = ["nvml.dll"];

/// `nvmlReturn_t`: zero is success.
type Status = c_int;

/// `nvmlDevice_t`.
type Handle = *mut c_void;

/// `nvmlMemory_t`, in bytes.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The started library.
pub(super) struct Nvml {
    device_by_uuid: unsafe extern "C" fn(*const c_char, *mut Handle) -> Status,
    memory_info: unsafe extern "C" fn(Handle, *mut Memory) -> Status,
}

impl Nvml {
    /// Absent if the library is not there or does not start. It is never shut down: the process keeps it loaded.
    pub(super) fn start() -> Option<Self> {
        let library = load_library(&NAMES).ok()?;
        // SAFETY: the types are the prototypes that nvml.h gives the functions named beside them.
        let (init, nvml) = unsafe {
            let init: unsafe extern "C" fn() -> Status = symbol(library, "nvmlInit_v2").ok()?;
            let device_by_uuid = symbol(library, "nvmlDeviceGetHandleByUUID").ok()?;
            let memory_info = symbol(library, "nvmlDeviceGetMemoryInfo").ok()?;
            (
                init,
                Self {
                    device_by_uuid,
                    memory_info,
                },
            )
        };
        // SAFETY: nvmlInit_v2 takes no argument.
        (unsafe { init() } == 0).then_some(nvml)
    }

    /// Bytes free on the device with this id.
    pub(super) fn free_memory(&self, uuid: &str) -> Option<u64> {
        let uuid = CString::new(uuid).ok()?;
        let mut device: Handle = std::ptr::null_mut();
        // SAFETY: the library was started; the id ends with a zero; the call writes one handle through its pointer.
        if unsafe { (self.device_by_uuid)(uuid.as_ptr(), &raw mut device) } != 0 {
            return None;
        }
        let mut memory = Memory::default();
        // SAFETY: the handle is the library's own, and the call writes one nvmlMemory_t, whose layout `Memory` has.
        let status = unsafe { (self.memory_info)(device, &raw mut memory) };
        (status == 0).then_some(memory.free)
    }
}
