//! Threads and the CPUs that they may run on.

pub(super) use os::{pin_to, stay_on};

#[cfg(target_os = "linux")]
mod os {
    use std::io;

    /// Lets the calling thread run on these CPUs only.
    pub fn pin_to(cpus: &[u32]) -> io::Result<()> {
        // SAFETY: a CPU set is plain bits, for which zero is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &cpu in cpus {
            let cpu = cpu as usize;
            if cpu >= libc::CPU_SETSIZE as usize {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            // SAFETY: the number was checked against the size of the set.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        set_affinity(&set)
    }

    fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
        // SAFETY: the set is valid for the size given with it; 0 is the calling thread.
        let result = unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Keeps the calling thread on some CPUs until it is dropped, by that thread.
    pub struct Stay {
        /// Where it was allowed to run before.
        before: libc::cpu_set_t,
    }

    /// Keeps the calling thread on these CPUs. Where that is refused it goes on as before: it costs speed only.
    pub fn stay_on(cpus: &[u32]) -> Option<Stay> {
        // SAFETY: a CPU set is plain bits, for which zero is the empty set.
        let mut before: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is valid for the size given with it, to be written; 0 is the calling thread.
        let known = unsafe { libc::sched_getaffinity(0, size_of_val(&before), &mut before) };
        (known == 0 && pin_to(cpus).is_ok()).then_some(Stay { before })
    }

    impl Drop for Stay {
        fn drop(&mut self) {
            // It was allowed before. If the system has taken CPUs away since, it has moved the thread as well.
            let _ = set_affinity(&self.before);
        }
    }
}

/// Other systems have no such call or none that binds; the plan's wish is a wish.
#[cfg(not(target_os = "linux"))]
mod os {
    use std::io;

    pub struct Stay;

    pub fn pin_to(_: &[u32]) -> io::Result<()> {
        Ok(())
    }

    pub fn stay_on(_: &[u32]) -> Option<Stay> {
        None
    }
}
