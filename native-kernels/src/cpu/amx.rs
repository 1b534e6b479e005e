//! Products of `bf16` tiles by AMX, with AVX-512 beside it.
//!
//! The intrinsics are not stable; the instructions are, by `asm!`. Eight tile registers of 1 KiB each: four sums, two of
//! activations, two of weights.
//! **Source**: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3.

use super::avx512::Avx512;
use super::avx512_bf16::Avx512Bf16;
use super::generic::tile_matmul::{
    PairKernel, PairUnit, TileKernel, TileSums, TileUnit, TileWords,
};
use super::vector::LANES;
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Proof that the CPU has AMX with `bf16` and AVX-512 BF16, and that the system lets this process use it: only
/// [`Amx::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amx(Avx512Bf16);

/// Whether there are tiles and the system has given permission for them, asked once.
pub(crate) fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        // An interpreter of Rust executes no assembly.
        if cfg!(miri) {
            return false;
        }
        has(AMX_TILE) && system_saves_tiles() && permitted()
    })
}

/// Products of `bf16`, of bytes, and tiles at all.
pub(super) const AMX_BF16: u32 = 22;
pub(super) const AMX_INT8: u32 = 25;
const AMX_TILE: u32 = 24;

/// Does the CPU say that it has this?
pub(super) fn has(bit: u32) -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> bit & 1 == 1
}

/// Does the system save the tiles of a thread that it puts aside?
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: OSXSAVE says that the instruction is there; it reads register 0 and changes no memory.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack));
    }
    const TILE_CONFIGURATION_AND_DATA: u32 = 0b11 << 17;
    low & TILE_CONFIGURATION_AND_DATA == TILE_CONFIGURATION_AND_DATA
}

/// Linux wants to be asked, once for a process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What the tile registers hold: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = {
    let (mut bytes_of_row, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        bytes_of_row[tile] = 64;
        rows[tile] = 16;
        tile += 1;
    }
    Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_of_row,
        rows,
    }
};

/// The tile registers of this thread, configured. It gives them up on every way out: the system need not save what nobody
/// uses.
pub(super) struct Configured(());

impl Configured {
    /// # Safety
    /// The tiles are [`usable`], and nobody else uses those of this thread while this lives.
    pub unsafe fn new() -> Self {
        // SAFETY: as the caller promises, the instruction is there and allowed; the configuration is 64 valid bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(readonly, nostack))
        };
        Self(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is only a `Configured` where the instruction is there; nobody relies on tiles after it.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

impl Amx {
    pub fn detect() -> Option<Self> {
        let pairs = Avx512Bf16::detect()?;
        (usable() && has(AMX_BF16)).then_some(Self(pairs))
    }

    /// Runs a kernel with the tile registers configured.
    pub fn run<K: TileKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")]
        fn compiled<K: TileKernel>(tiles: AmxTiles, kernel: K) {
            kernel.run(tiles);
        }
        // SAFETY: the token proves that the tiles can be used.
        let _configured = unsafe { Configured::new() };
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(AmxTiles(self), kernel) }
    }

    /// Runs a kernel that needs no tile registers.
    pub fn widen<K: PairKernel>(self, kernel: K) {
        self.0.widen(kernel);
    }
}

/// Proof that the tile registers of this thread are configured: only [`Amx::run`] makes one, for the kernel that it runs.
///
/// A kernel does not call `run` again while it multiplies: that would give the tiles up.
#[derive(Clone, Copy)]
struct AmxTiles(Amx);

impl PairUnit for AmxTiles {
    type Lanes = Avx512;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0.0.lanes()
    }

    #[inline(always)]
    fn store_pairs(self, a: __m512, b: __m512, to: &mut [bf16; 2 * LANES]) {
        self.0.0.store_pairs(a, b, to);
    }

    #[inline(always)]
    fn store_row(self, a: __m512, b: __m512, to: &mut [bf16; 2 * LANES]) {
        self.0.0.store_row(a, b, to);
    }
}

impl TileUnit for AmxTiles {
    #[inline(always)]
    fn multiply<const A: usize>(
        self,
        a: [&[TileWords]; A],
        b: [&[TileWords]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        let steps = b[0].len();
        assert!(steps > 0 && b[1].len() == steps && a.iter().all(|a| a.len() == steps));
        let to = sums.as_mut_ptr();
        // SAFETY: the token proves that the instructions are there and the tiles configured as 16 rows of 64 bytes. Each of the `steps` rounds reads one whole tile (1 KiB, rows 64
        // bytes apart) of every operand, all of which are `steps` long; the sums are `A` times two tiles.
        unsafe {
            if A == 2 {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a0} + {stride}]",
                    "tileloadd tmm6, [{b0} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {stride}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b0}, 1024",
                    "add {b1}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{to} + {stride}], tmm0",
                    "tilestored [{to} + {stride} + 1024], tmm1",
                    "tilestored [{to} + {stride} + 2048], tmm2",
                    "tilestored [{to} + {stride} + 3072], tmm3",
                    a0 = inout(reg) a[0].as_ptr() => _,
                    a1 = inout(reg) a[A - 1].as_ptr() => _,
                    b0 = inout(reg) b[0].as_ptr() => _,
                    b1 = inout(reg) b[1].as_ptr() => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) 64usize,
                    to = in(reg) to,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                assert!(A == 1, "one or two tiles of rows");
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm4, [{a0} + {stride}]",
                    "tileloadd tmm6, [{b0} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {stride}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a0}, 1024",
                    "add {b0}, 1024",
                    "add {b1}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{to} + {stride}], tmm0",
                    "tilestored [{to} + {stride} + 1024], tmm1",
                    a0 = inout(reg) a[0].as_ptr() => _,
                    b0 = inout(reg) b[0].as_ptr() => _,
                    b1 = inout(reg) b[1].as_ptr() => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) 64usize,
                    to = in(reg) to,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
