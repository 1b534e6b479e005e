//! The driver's entry points that listing devices needs, loaded when asked for: no toolkit, and no driver, is needed
//! to build or to start.
//!
//! **Source**: `cuda.h` of CUDA 12 (prototypes, attribute numbers); each of these has been there since CUDA 11.

use std::error::Error;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};

use libloading::Library;

/// `CUresult`: zero is success.
pub(super) type Status = c_int;

/// `CUdevice`: an ordinal in disguise.
pub(super) type Device = c_int;

/// `CUdevice_attribute`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attribute {
    Multiprocessors = 16,
    Integrated = 18,
    EccEnabled = 32,
    PciBus = 33,
    PciDevice = 34,
    PciDomain = 50,
    CapabilityMajor = 75,
    CapabilityMinor = 76,
}

/// `CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED`.
const P2P_NATIVE_ATOMICS: c_int = 3;

/// A loaded driver.
///
/// **Invariant:** every pointer is the entry point that its field names, with the prototype of `cuda.h`, and stays
/// callable: the library is never unloaded.
pub(super) struct Driver {
    pub(super) init: unsafe extern "C" fn(c_uint) -> Status,
    pub(super) driver_version: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) device_count: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) device: unsafe extern "C" fn(*mut Device, c_int) -> Status,
    pub(super) device_name: unsafe extern "C" fn(*mut c_char, c_int, Device) -> Status,
    pub(super) device_uuid: unsafe extern "C" fn(*mut [u8; 16], Device) -> Status,
    pub(super) device_memory: unsafe extern "C" fn(*mut usize, Device) -> Status,
    pub(super) device_attribute: unsafe extern "C" fn(*mut c_int, c_int, Device) -> Status,
    pub(super) can_access_peer: unsafe extern "C" fn(*mut c_int, Device, Device) -> Status,
    pub(super) p2p_attribute: unsafe extern "C" fn(*mut c_int, c_int, Device, Device) -> Status,
}

/// Why there is no driver to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LoadError {
    /// There is no library of any of the names.
    NotFound,
    /// There is one that could not be loaded: the loader's words.
    Broken(String),
    /// It lacks an entry point.
    MissingSymbol(&'static str),
}

impl Driver {
    /// Loads the first of `names` that the loader finds.
    pub(super) fn load(names: &[&str]) -> Result<Self, LoadError> {
        let library = load_library(names)?;
        // SAFETY: each field's type is the prototype that cuda.h gives the function named beside it.
        unsafe {
            Ok(Self {
                init: symbol(library, "cuInit")?,
                driver_version: symbol(library, "cuDriverGetVersion")?,
                device_count: symbol(library, "cuDeviceGetCount")?,
                device: symbol(library, "cuDeviceGet")?,
                device_name: symbol(library, "cuDeviceGetName")?,
                // The second version tells the slices of a partitioned device apart, and exists since CUDA 11.4.
                device_uuid: symbol(library, "cuDeviceGetUuid_v2")
                    .or_else(|_| symbol(library, "cuDeviceGetUuid"))?,
                device_memory: symbol(library, "cuDeviceTotalMem_v2")?,
                device_attribute: symbol(library, "cuDeviceGetAttribute")?,
                can_access_peer: symbol(library, "cuDeviceCanAccessPeer")?,
                p2p_attribute: symbol(library, "cuDeviceGetP2PAttribute")?,
            })
        }
    }

    /// Starts the driver; must succeed before any other call.
    pub(super) fn start(&self) -> Result<(), Status> {
        // SAFETY: cuInit takes flags, which must be zero, and no pointer.
        check(unsafe { (self.init)(0) })
    }

    /// Newest CUDA that the driver supports: (12, 4).
    pub(super) fn version(&self) -> Result<(u32, u32), Status> {
        // SAFETY: the call writes one int through its pointer, valid during the call.
        let version = read(|out| unsafe { (self.driver_version)(out) })?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok((version / 1000, version % 1000 / 10))
    }

    pub(super) fn count(&self) -> Result<u32, Status> {
        // SAFETY: as above.
        let count = read(|out| unsafe { (self.device_count)(out) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(super) fn device(&self, index: u32) -> Result<Device, Status> {
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: as above; an ordinal out of range is an error of the call.
        read(|out| unsafe { (self.device)(out, index) })
    }

    pub(super) fn name(&self, device: Device) -> Result<String, Status> {
        let mut name = [0u8; 256];
        // SAFETY: the call writes at most as many bytes as it is told the array has, one fewer than it has, so that a
        // zero always ends it.
        check(unsafe {
            (self.device_name)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device)
        })?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().replace(char::is_control, "?"))
    }

    pub(super) fn uuid(&self, device: Device) -> Result<[u8; 16], Status> {
        let mut uuid = [0; 16];
        // SAFETY: the call writes one CUuuid, which is 16 bytes, through its pointer, valid during the call.
        check(unsafe { (self.device_uuid)(&raw mut uuid, device) })?;
        Ok(uuid)
    }

    /// Bytes of memory on the device.
    pub(super) fn memory(&self, device: Device) -> Result<u64, Status> {
        let mut bytes = 0;
        // SAFETY: the call writes one size_t through its pointer, valid during the call.
        check(unsafe { (self.device_memory)(&raw mut bytes, device) })?;
        Ok(bytes as u64)
    }

    pub(super) fn attribute(&self, attribute: Attribute, device: Device) -> Result<u32, Status> {
        // SAFETY: the call writes one int through its pointer, valid during the call; an attribute that an older
        // driver does not know is an error of the call.
        let value =
            read(|out| unsafe { (self.device_attribute)(out, attribute as c_int, device) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// May a kernel on `device` read the memory of `peer`?
    pub(super) fn reaches(&self, device: Device, peer: Device) -> bool {
        // SAFETY: the call writes one int through its pointer, valid during the call.
        read(|out| unsafe { (self.can_access_peer)(out, device, peer) }) == Ok(1)
    }

    /// Does the link between them carry atomic operations? NVLink does; PCI Express does not.
    pub(super) fn has_native_atomics(&self, device: Device, peer: Device) -> bool {
        // SAFETY: as above.
        read(|out| unsafe { (self.p2p_attribute)(out, P2P_NATIVE_ATOMICS, device, peer) }) == Ok(1)
    }
}

/// The first of `names` that the loader finds; it stays loaded until the process ends, since threads and exit
/// handlers of a driver outlive any use of it.
pub(super) fn load_library(names: &[&str]) -> Result<&'static Library, LoadError> {
    let mut reason = LoadError::NotFound;
    for name in names {
        // SAFETY: loading runs the library's constructors. It is the vendor's driver, found where the system keeps
        // its libraries, and every program that uses the device trusts it so.
        match unsafe { Library::new(OsStr::new(name)) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) if reason == LoadError::NotFound => reason = load_error(&error),
            Err(_) => {}
        }
    }
    Err(reason)
}

/// The loader has no error codes, only words.
fn load_error(error: &libloading::Error) -> LoadError {
    let words = error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string);
    let lower = words.to_ascii_lowercase();
    let not_found = ["no such file", "could not be found", "image not found"];
    if not_found.iter().any(|phrase| lower.contains(phrase)) {
        LoadError::NotFound
    } else {
        LoadError::Broken(words.replace(char::is_control, " "))
    }
}

/// The entry point `name` of a library that is never unloaded.
///
/// # Safety
/// `T` must be a function pointer of the prototype that the library's header gives `name`.
pub(super) unsafe fn symbol<T: Copy>(
    library: &'static Library,
    name: &'static str,
) -> Result<T, LoadError> {
    // SAFETY: the caller guarantees the type; the pointer stays valid since the library is never unloaded.
    let symbol = unsafe { library.get::<T>(name) };
    symbol
        .map(|symbol| *symbol)
        .map_err(|_| LoadError::MissingSymbol(name))
}

fn check(status: Status) -> Result<(), Status> {
    if status == 0 { Ok(()) } else { Err(status) }
}

fn read(call: impl FnOnce(*mut c_int) -> Status) -> Result<c_int, Status> {
    let mut value = 0;
    check(call(&raw mut value))?;
    Ok(value)
}
